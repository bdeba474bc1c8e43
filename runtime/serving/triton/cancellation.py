"""Clients that leave. Triton tells of them only when asked, whether or not there is something to send."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from sparsespec.runtime.serving.triton.guarded_sender import GuardedSender

POLL_S = 0.1  # asking costs the asker some 50 microseconds, and the event loop nothing


class CancellationWatch:
    """A thread that asks for every request that is being answered, and cancels those whose client has left."""

    def __init__(self) -> None:
        self._watched: dict[Future[None], GuardedSender] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sparsespec-cancellations", daemon=True)
        self._thread.start()

    def watch(self, answering: Future[None], sender: GuardedSender) -> None:
        """Cancel answering once the client has left."""
        with self._lock:
            self._watched[answering] = sender

    def close(self) -> None:
        """Stop asking."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(POLL_S):
            for answering, sender in self._still_answering():
                if sender.is_cancelled():
                    answering.cancel()

    def _still_answering(self) -> list[tuple[Future[None], GuardedSender]]:
        with self._lock:
            self._watched = {answering: sender for answering, sender in self._watched.items() if not answering.done()}
            return list(self._watched.items())
