"""A service without an engine, for what a real one seldom does: it says what it is told to, then fails or waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import NamedTuple

import httpx

from sparsespec.runtime.outputs import CompletionOutput, RequestOutput
from sparsespec.runtime.results import TokenLogprobs
from sparsespec.runtime.serving.http.guards import RequestIds
from sparsespec.runtime.serving.openai.routes import ApiApp, add_error_answers, add_openai_routes
from sparsespec.runtime.serving.service import ServiceRequest
from sparsespec.runtime.text import TextCodec
from sparsespec.runtime.verification import Verification
from tiny_models import tiny_tokenizer

CODEC = TextCodec(tiny_tokenizer(128))


class FakeDelta(NamedTuple):
    """In place of an OutputDelta, whose text depends on a request."""

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    accepted: tuple[bool, ...] = ()
    index: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()


def output_of(*texts: str, token_ids: tuple[int, ...] = (5,), checks: tuple[Verification, ...] = ()) -> RequestOutput:
    """Answers of the same tokens and verifications."""
    answers = [CompletionOutput(i, text, token_ids, (), "stop", None, checks) for i, text in enumerate(texts)]
    return RequestOutput(0, None, (3, 4), tuple(answers))


@dataclass
class FakeService:
    """Streams `items` to every request; then raises `error`, or waits for ever, which being closed ends."""

    items: tuple[FakeDelta | RequestOutput, ...] = ()
    error: Exception | None = None
    waits: bool = False
    codec: TextCodec = CODEC
    seen: list[ServiceRequest] = field(default_factory=list)
    num_left: int = 0  # streams that were closed before their ends

    def check_fits(self, num_answers: int) -> None:
        """Anything does."""

    async def stream(self, request: ServiceRequest) -> AsyncGenerator[FakeDelta | RequestOutput, None]:
        self.seen.append(request)
        try:
            for item in self.items:
                yield item
            if self.error is not None:
                raise self.error
            if self.waits:
                await asyncio.Event().wait()
        except (GeneratorExit, asyncio.CancelledError):
            self.num_left += 1
            raise


def fake_app(service: FakeService) -> RequestIds:
    """The API alone, serving the model "tiny"."""
    app = ApiApp()
    add_openai_routes(app, service, "tiny")
    add_error_answers(app)
    return RequestIds(app)


def client_of(service: FakeService) -> httpx.AsyncClient:
    """A client of the API without a network."""
    transport = httpx.ASGITransport(fake_app(service), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://tiny/v1")


def post(service: FakeService, path: str, body: object) -> httpx.Response:
    """One request."""

    async def send() -> httpx.Response:
        async with client_of(service) as client:
            return await client.post(path, json=body)

    return asyncio.run(send())
