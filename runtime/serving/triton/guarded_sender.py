"""A response sender that two threads may use."""

from __future__ import annotations

import threading

from sparsespec.runtime.serving.triton.python_backend import ResponseSender


class GuardedSender:
    """Asks nothing once the last response is on its way: Triton 2.51 frees what it would look at, and crashes."""

    def __init__(self, sender: ResponseSender) -> None:
        self._sender = sender
        self._lock = threading.Lock()
        self._ended = False

    def send(self, response: object) -> None:
        """One that others follow."""
        self._sender.send(response)

    def send_last(self, response: object, final: int) -> None:
        """Nothing where there was one: a client may leave just then. final: TRITONSERVER_RESPONSE_COMPLETE_FINAL."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._sender.send(response, flags=final)

    def is_cancelled(self) -> bool:
        """Whether the client has left before the last response."""
        with self._lock:
            return not self._ended and self._sender.is_cancelled()
