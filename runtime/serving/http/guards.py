"""What lies before the routes, as ASGI applications around them: request ids and an access log, the key, and bodies."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from sparsespec.runtime.serving.http.server_config import ServerConfig
from sparsespec.runtime.serving.logs import log_event
from sparsespec.runtime.serving.openai.errors import ErrorAnswer

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_CLOSE = {"Connection": "close"}  # more of the body may come
_UNKNOWN = ErrorAnswer(
    401,
    "expected the server's key as `Authorization: Bearer KEY`",
    code="invalid_api_key",
    headers={"WWW-Authenticate": "Bearer"},
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class HttpRequest:
    """A line of the access log."""

    request_id: str
    client: str | None
    method: str
    path: str
    status: int | None  # None where the client had left before an answer
    duration_s: float


class RequestIds:
    """Gives each request an id, the client's X-Request-Id if that is one, in `state`, answer and log."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status: list[int] = []

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        start = monotonic()
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            client = scope.get("client")
            log_event(
                HttpRequest(
                    request_id=request_id,
                    client=None if client is None else str(client[0]),
                    method=scope["method"],
                    path=scope["path"],
                    status=status[0] if status else None,
                    duration_s=round(monotonic() - start, 6),
                ),
                logging.DEBUG if scope["path"] in ("/health", "/metrics", "/v1/status") else logging.INFO,
            )


class ApiKey:
    """Lets nobody to /v1 without the key."""

    def __init__(self, app: App, api_key: str) -> None:
        self._app = app
        self._expected = b"Bearer " + api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            given = header(scope, b"authorization").encode("latin-1")
            if not secrets.compare_digest(given, self._expected):
                await _refuse(send, _UNKNOWN)
                return
        await self._app(scope, receive, send)


class Bodies:
    """Receives each body as a whole, within its limits, before anything looks at it."""

    def __init__(self, app: App, limits: ServerConfig) -> None:
        self._app = app
        self._limits = limits
        self._num_pending = 0  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._receive_body(scope, receive)
        except _BodyError as error:
            await _refuse(send, error.answer)
            return
        if body is None:
            return  # the client has left

        parts = [body]

        async def receive_again() -> Message:
            return {"type": "http.request", "body": parts.pop()} if parts else await receive()

        await self._app(scope, receive_again, send)

    async def _receive_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Raises _BodyError for one that is too large or too slow; None where the client leaves."""
        declared = header(scope, b"content-length")
        if declared.isdecimal() and int(declared[:20]) > self._limits.max_body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        try:
            limit = self._limits.receive_timeout_s
            return await asyncio.wait_for(self._collect(receive, parts), limit)
        except asyncio.TimeoutError:
            message = f"the body took over {self._limits.receive_timeout_s:g} s"
            raise _BodyError(ErrorAnswer(408, message, headers=_CLOSE)) from None
        finally:
            self._num_pending -= sum(map(len, parts))

    async def _collect(self, receive: Receive, parts: list[bytes]) -> bytes | None:
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            self._num_pending += len(part)
            if size > self._limits.max_body_bytes:
                raise self._too_large()
            if self._num_pending > self._limits.max_pending_body_bytes:
                text = "too many bodies are being received: try again later"
                raise _BodyError(ErrorAnswer(503, text, headers=_CLOSE | {"Retry-After": "1"}))
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> _BodyError:
        message = f"the body has over {self._limits.max_body_bytes} bytes"
        return _BodyError(ErrorAnswer(413, message, headers=_CLOSE))


class _BodyError(Exception):
    def __init__(self, answer: ErrorAnswer) -> None:
        super().__init__(answer.message)
        self.answer = answer


def header(scope: Scope, name: bytes) -> str:
    """A header's value; empty where there is none."""
    values = (value for key, value in scope["headers"] if key == name)
    return bytes(next(values, b"")).decode("latin-1")


async def _refuse(send: Send, answer: ErrorAnswer) -> None:
    response = answer.response()
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})
