"""Clients of servers, with one face, text as it comes; and that of `sparsespec-serve`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol

import httpx


@dataclass(frozen=True)
class Question:
    """What is asked, greedily."""

    prompt: str
    max_tokens: int
    ignore_eos: bool = False


class StreamingClient(Protocol):
    """Of one server, for any number of streams at once."""

    def stream(self, question: Question) -> AsyncGenerator[str, None]:
        """Parts of the answer as they come. Raises ServingFailure for an answer that is an error, or ends with one."""

    async def close(self) -> None:
        """Ends its connections."""


class ServingFailure(Exception):
    """What a server says in place of an answer, or of its end."""


class OpenAIStreams:
    """Of `sparsespec-serve`: completions as server-sent events."""

    def __init__(self, url: str, model: str) -> None:
        self._model = model
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(base_url=url, timeout=None, limits=limits)

    async def stream(self, question: Question) -> AsyncGenerator[str, None]:
        """See StreamingClient."""
        body = {
            "model": self._model,
            "prompt": question.prompt,
            "max_tokens": question.max_tokens,
            "temperature": 0,
            "ignore_eos": question.ignore_eos,
            "stream": True,
        }
        async with self._http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                raise ServingFailure((await answer.aread()).decode())
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    yield _text(json.loads(line.removeprefix("data: ")))
        raise ServingFailure("the stream ended before [DONE]")

    async def close(self) -> None:
        """See StreamingClient."""
        await self._http.aclose()


def _text(chunk: dict[str, Any]) -> str:
    if "error" in chunk:
        raise ServingFailure(chunk["error"]["message"])
    return str(chunk["choices"][0]["text"])
