"""Server-sent events, and clients that leave before they have their answer. No torch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sparsespec.runtime.serving.openai.answer_types import Usage
from sparsespec.runtime.serving.openai.errors import error_answer

ResultT = TypeVar("ResultT")

DONE = b"data: [DONE]\n\n"


class ClientLeft(Exception):
    """Nobody waits for the answer any longer."""


async def unless_left(receive: Receive, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Do the work; cancelled, and ClientLeft raised, as soon as the client has left. Its body has been read before."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_until_left(receive))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends events as they are made, and stops making them when the client leaves.

    Not Starlette's StreamingResponse: what fails before the first event is an HTTP error, later an event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        """Take over a generator of whole events; it is closed in any case."""
        self.status_code = 200
        self.background = None
        self._events = events
        # Proxies such as nginx would otherwise keep events back to send them together.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        with suppress(ClientLeft):  # there is nobody to answer then
            await unless_left(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send(_part(first, more=True))
            try:
                async for event in events:
                    await send(_part(event, more=True))
            except Exception as error:
                answer = error_answer(error)
                await send(_part(b"data: " + answer.body + b"\n\n", more=False))
                if answer.status == 500:
                    raise  # to the server's log
                return
        await send(_part(b"", more=False))


def _part(body: bytes, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": body, "more_body": more}


@dataclass(frozen=True)
class ChunkFrame:
    """What all chunks of a stream have in common, made once: a chunk is then no more than its choice.

    JSON in ASCII: some clients take U+2028 and its like for the end of a line.
    """

    head: bytes  # up to the choices
    tail: bytes  # after them

    @staticmethod
    def of(answer_id: str, kind: str, created: int, model: str, include_usage: bool) -> ChunkFrame:
        """With include_usage all chunks but that of usage say null of it."""
        named = json.dumps({"id": answer_id, "object": kind, "created": created, "model": model}, separators=(",", ":"))
        head = f'data: {named[:-1]},"choices":['
        tail = '],"usage":null}\n\n' if include_usage else "]}\n\n"
        return ChunkFrame(head.encode(), tail.encode())

    def chunk(self, choice: BaseModel) -> bytes:
        """The event of one choice."""
        return self.head + choice.model_dump_json(ensure_ascii=True).encode() + self.tail

    def usage(self, usage: Usage) -> bytes:
        """The event of no choice."""
        return self.head + b'],"usage":' + usage.model_dump_json().encode() + b"}\n\n"
