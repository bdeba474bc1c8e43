"""Clients of servers, with one face, text as it comes; and that of `sparsespec-serve`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit


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
    """Of `sparsespec-serve`: completions as server-sent events, each on a connection of its own.

    On bare sockets: with hundreds of streams a client library takes more time for an event than the server does.
    """

    def __init__(self, url: str, model: str) -> None:
        self._url = urlsplit(url)
        self._model = model

    async def stream(self, question: Question) -> AsyncGenerator[str, None]:
        """See StreamingClient."""
        reader, writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        try:
            writer.write(self._request(question))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                raise ServingFailure((await reader.read()).decode())
            while (event := _data(await reader.readuntil(b"\n\n"))) != b"[DONE]":
                yield _text(json.loads(event))
        except asyncio.IncompleteReadError:
            raise ServingFailure("the stream ended before [DONE]") from None
        finally:
            writer.close()

    async def close(self) -> None:
        """Nothing: a stream's connection ends with it."""

    def _request(self, question: Question) -> bytes:
        fields = {
            "model": self._model,
            "prompt": question.prompt,
            "max_tokens": question.max_tokens,
            "temperature": 0,
            "ignore_eos": question.ignore_eos,
            "stream": True,
        }
        body = json.dumps(fields).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self._url.netloc}\r\nConnection: close\r\n"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _data(event: bytes) -> bytes:
    """Of an event, which an HTTP chunk's frame is around."""
    return event[event.index(b"data: ") + len(b"data: ") :].rstrip()


def _text(chunk: dict[str, Any]) -> str:
    if "error" in chunk:
        raise ServingFailure(chunk["error"]["message"])
    return str(chunk["choices"][0]["text"])
