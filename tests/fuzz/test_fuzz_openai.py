"""Damaged bodies of OpenAI's API are answered, or refused by a 400 that says what is wrong."""

from __future__ import annotations

import asyncio
from contextlib import closing
from random import Random
from typing import Any

import httpx
import pytest

from fake_service import FakeService, client_of, output_of
from hostile_campaign import LONGEST_MESSAGE, campaign
from hostile_mutations import damaged_bytes, damaged_json
from sparsespec.runtime.serving.openai.request_types import ChatRequest, CompletionRequest

SAMPLING = {
    "model": "tiny", "n": 1, "temperature": 0.5, "top_p": 0.5, "top_k": 5, "seed": 3, "stop": ["a", "b"],
    "stop_token_ids": [4, 5], "max_tokens": 9, "stream": True, "stream_options": {"include_usage": True},
}  # fmt: skip
CHAT = {
    **SAMPLING,
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "t"}]},
        {"role": "assistant", "content": "a", "tool_calls": []},
    ],
    "logprobs": True,
    "top_logprobs": 2,
    "response_format": {"type": "text"},
}
COMPLETION = {**SAMPLING, "prompt": [[5, 6], [7]], "logprobs": 2, "echo": False, "best_of": 1}


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        ("/completions", COMPLETION, list(CompletionRequest.model_fields)),
        ("/chat/completions", CHAT, list(ChatRequest.model_fields)),
    ],
)
def test_bodies(path: str, body: dict[str, Any], names: list[str]) -> None:
    async def send(data: bytes) -> httpx.Response:
        return await client.post(path, content=data, headers={"content-type": "application/json"})

    def attempt(random: Random) -> None:
        data = damaged_json(body, random, names)
        if random.random() < 0.1 and data:
            data = damaged_bytes(data, random)
        check(loop.run_until_complete(send(data)))

    client = client_of(FakeService((output_of("yes"),)))
    with closing(asyncio.new_event_loop()) as loop:
        campaign(f"bodies of {path}", attempt)


def check(answer: httpx.Response) -> None:
    """An answer, or an error in a few words."""
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert 0 < len(error["message"]) <= LONGEST_MESSAGE, error
        assert error["type"] == "invalid_request_error"
