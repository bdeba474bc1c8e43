"""A sender that the event loop and the watch for cancellations share."""

from __future__ import annotations

import threading

from fake_triton import FINAL, FakeResponse, FakeSender
from sparsespec.runtime.serving.triton.guarded_sender import GuardedSender


def test_nothing_is_asked_after_the_last_response() -> None:
    sender = FakeSender(cancelled=True)
    guarded = GuardedSender(sender)
    guarded.send(FakeResponse())
    assert guarded.is_cancelled()
    guarded.send_last(FakeResponse(), FINAL)
    assert not guarded.is_cancelled()
    assert sender.times_asked == 1


def test_the_last_response_waits_for_an_answer() -> None:
    """Triton frees what it looks at for that answer."""
    sender = FakeSender()
    guarded = GuardedSender(sender)
    asked, may_answer = threading.Event(), threading.Event()

    def answer_late() -> None:
        asked.set()
        may_answer.wait(60)

    sender.when_asked = answer_late
    asking = threading.Thread(target=guarded.is_cancelled)
    asking.start()
    asked.wait(60)
    sending = threading.Thread(target=guarded.send_last, args=(FakeResponse(), FINAL))
    sending.start()
    sending.join(0.05)
    assert not sender.ended
    may_answer.set()
    sending.join(60)
    asking.join(60)
    assert sender.ended
