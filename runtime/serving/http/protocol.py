"""uvicorn's HTTP protocol with limits that it lacks: on connections, a request's head, and clients that do not read.

Without them a client that sends a header a minute, an endless one, or reads nothing would hold memory for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from sparsespec.runtime.serving.http.server_config import ServerConfig


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        limits: ServerConfig,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """limits first, for functools.partial; the others as uvicorn gives them."""
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._head_bytes = 0  # of a head that has not ended
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse it where there are too many."""
        super().connection_made(transport)
        self._begin_head()
        if len(self.connections) > self._limits.max_connections:
            self._refuse("503 Service Unavailable", "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """No timer outlives its connection."""
        self._end_head()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes count as a head's until it ends."""
        if self.transport.is_closing():
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_timer is None:
            self._head_bytes = 0
        elif self._head_bytes > self._limits.max_head_bytes and not self.transport.is_closing():
            limit = self._limits.max_head_bytes
            self._refuse("431 Request Header Fields Too Large", f"the head has over {limit} bytes")

    def on_message_begin(self) -> None:
        """A head's first byte."""
        super().on_message_begin()
        self._begin_head()

    def on_headers_complete(self) -> None:
        """A head's last byte."""
        self._end_head()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(self._limits.send_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It goes on."""
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
        super().resume_writing()

    def _begin_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.receive_timeout_s, self._head_is_late)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._begin_head()  # an answer before it is not at its end
        elif self._head_bytes == 0 and self.cycle is None:
            self.transport.close()  # whoever connected said nothing
        else:
            self._refuse("408 Request Timeout", f"the head took over {self._limits.receive_timeout_s:g} s")

    def _refuse(self, status: str, reason: str) -> None:
        self._end_head()
        self.logger.warning("%s: %s", status, reason)
        fields = f"content-type: text/plain\r\ncontent-length: {len(reason)}\r\nconnection: close\r\n"
        self.transport.write(f"HTTP/1.1 {status}\r\n{fields}\r\n{reason}".encode("ascii"))
        self.transport.close()
