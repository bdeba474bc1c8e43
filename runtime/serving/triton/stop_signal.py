"""SIGTERM and SIGINT in the model's process, of which Triton's Python backend makes nothing.

A server that stops waits until its streams have ended, and tells the model nothing before. Whoever stops it
(systemd, a terminal, `tini -g`) signals all of its processes.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable


def on_stop_signal(stop: Callable[[], None]) -> None:
    """Have a thread call stop once at the first such signal. To be called in the main thread.

    That thread is in the backend's hands, where no Python code runs; so the signal's number comes through a socket.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _nothing)
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=(receiver, stop), name="sparsespec-stop-signal", daemon=True).start()


def _wait(receiver: socket.socket, stop: Callable[[], None]) -> None:
    while receiver.recv(1)[0] not in (signal.SIGTERM, signal.SIGINT):
        pass
    stop()


def _nothing(number: int, frame: object) -> None:
    """Without a handler in Python nothing would be written to the socket."""
