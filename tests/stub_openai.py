"""A server with the page's routes whose answers are scripted: the last message's text names the script.

Its chunks are the real server's: `choices[0].tokens` says of every token which bytes it adds and if it was drafted.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from sparsespec.runtime.serving.http.page import page_router

Ending = Literal["done", "error", "lost", "endless"]


@dataclass(frozen=True)
class StubToken:
    """One token of an answer; its bytes may be part of a character."""

    data: bytes
    accepted_draft: bool = False

    def as_json(self) -> dict[str, Any]:
        text = self.data.decode(errors="replace")
        return {"token": text, "bytes": list(self.data), "accepted_draft": self.accepted_draft}


@dataclass(frozen=True)
class Script:
    """An answer's chunks, `pause_s` apart, and what comes after them; or a status that is an error."""

    chunks: Sequence[Sequence[StubToken]] = ()
    ending: Ending = "done"
    status: int = 200
    pause_s: float = 0.0

    @property
    def text(self) -> str:
        return b"".join(token.data for chunk in self.chunks for token in chunk).decode()

    @property
    def num_accepted(self) -> int:
        return sum(token.accepted_draft for chunk in self.chunks for token in chunk)


@dataclass
class StubServer:
    """What it answers and what it was asked, for tests to look at from another thread."""

    scripts: Mapping[str, Script]
    api_key: str | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    disconnected: threading.Event = field(default_factory=threading.Event)

    def app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(page_router())
        app.add_api_route("/v1/status", self.status, methods=["GET"])
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        return app

    async def status(self, request: Request) -> Response:
        if self._refuses(request):
            return _error(401, "expected an API key")
        means = {"accepted_drafts_mean": 2.5, "drafts_mean": 4.0, "tokens_per_second": 123.4}
        return JSONResponse({"running": 3, "waiting": 1, "kv_cache_usage": 0.25, "model": "stub", **means})

    async def chat(self, request: Request) -> Response:
        if self._refuses(request):
            return _error(401, "expected an API key")
        body = await request.json()
        self.bodies.append(body)
        script = self.scripts[body["messages"][-1]["content"]]
        if script.status != 200:
            return _error(script.status, f"scripted status {script.status}")
        return StreamingResponse(self._events(script), media_type="text/event-stream")

    def _refuses(self, request: Request) -> bool:
        return self.api_key is not None and request.headers.get("Authorization") != f"Bearer {self.api_key}"

    async def _events(self, script: Script) -> AsyncIterator[str]:
        try:
            async for event in scripted_events(script):
                yield event
        except asyncio.CancelledError:
            self.disconnected.set()
            raise


async def scripted_events(script: Script) -> AsyncIterator[str]:
    """The body of the answer: server-sent events."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for chunk in script.chunks:
        content = decoder.decode(b"".join(token.data for token in chunk))
        yield _event({"choices": [_choice(content, chunk)]})
        await asyncio.sleep(script.pause_s)
    if script.ending == "endless":
        await asyncio.sleep(3600)
    if script.ending == "error":
        yield _event({"error": {"message": "scripted failure", "type": "server_error", "param": None, "code": None}})
    if script.ending == "done":
        yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        details = {"accepted_prediction_tokens": script.num_accepted, "rejected_prediction_tokens": 1}
        yield _event({"choices": [], "usage": {"completion_tokens_details": details}})
        yield "data: [DONE]\n\n"


def _choice(content: str, chunk: Sequence[StubToken]) -> dict[str, Any]:
    tokens = [token.as_json() for token in chunk]
    return {"index": 0, "delta": {"content": content}, "tokens": tokens, "finish_reason": None}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _error(status: int, message: str) -> JSONResponse:
    headers = {"Retry-After": "2"} if status == 429 else {}
    return JSONResponse({"error": {"message": message, "type": "stub", "param": None, "code": None}}, status, headers)
