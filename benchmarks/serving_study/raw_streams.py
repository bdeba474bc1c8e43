"""Clients that cost next to nothing: they ask for a stream and drop what comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, cast

from host_load import Load
from serving_study.host_pace import Pace, load_prompt
from serving_study.host_server import MODEL, MeasuredServer


class RawStream(asyncio.Protocol):
    """One connection. `failure` says what went wrong, an end included: it is to last until it is closed."""

    def __init__(self, request: bytes) -> None:
        self.failure: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._request = request
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if not self._begun and not data.startswith(b"HTTP/1.1 200 "):
            self._fail(f"expected an answer of status 200, found {data[:200]!r}")
        self._begun = True

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._fail("a stream ended before it was measured")

    def _fail(self, message: str) -> None:
        if not self.failure.done():
            self.failure.set_result(message)


async def pace_under_load(server: MeasuredServer, load: Load) -> Pace:
    """The server's, while it streams to all. Raises RuntimeError where a stream fails."""
    loop = asyncio.get_running_loop()
    measured = asyncio.Event()
    loop.add_reader(server.answers.fileno(), measured.set)
    ended = asyncio.ensure_future(measured.wait())
    streams = [await _open_stream(server.port, number, load) for number in range(load.num_requests)]
    events: list[asyncio.Future[Any]] = [ended, *(stream.failure for stream in streams)]
    await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
    failures = [stream.failure.result() for stream in streams if stream.failure.done()]
    for stream in streams:
        stream.transport.close()
    loop.remove_reader(server.answers.fileno())
    if failures and not measured.is_set():
        raise RuntimeError(failures[0])
    return server.pace()


async def _open_stream(port: int, number: int, load: Load) -> RawStream:
    request = stream_request(load_prompt(number, load), load.output_tokens[0])
    _, stream = await asyncio.get_running_loop().create_connection(lambda: RawStream(request), "127.0.0.1", port)
    return stream


def stream_request(prompt: Sequence[int], max_tokens: int) -> bytes:
    """A POST of a greedy completion as a stream."""
    fields = {"model": MODEL, "prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0}
    body = json.dumps(fields | {"stream": True, "ignore_eos": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {MODEL}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
