"""What clients are told when something fails, before an answer and in the middle of one; and clients that leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest

from fake_service import FakeDelta, FakeService, client_of, fake_app, output_of, post
from sparsespec.builder.errors import RequestError
from sparsespec.runtime.serving.service_errors import (
    DeadlineError,
    DrainingError,
    EngineFailedError,
    OverloadedError,
    ServiceError,
)

COMPLETION = {"model": "tiny", "prompt": "abc"}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "abc"}]}
PATHS = [("/completions", COMPLETION), ("/chat/completions", CHAT)]
FAILURES = [
    (RequestError("too long"), 400, None, openai.BadRequestError),
    (OverloadedError("too many"), 429, "rate_limit_exceeded", openai.RateLimitError),
    (EngineFailedError("broken"), 500, "engine_failed", openai.InternalServerError),
    (ServiceError("odd"), 500, None, openai.InternalServerError),
    (DrainingError("ending"), 503, "draining", openai.InternalServerError),
    (DeadlineError("late"), 504, "timeout", openai.InternalServerError),
]


def asked_of(service: FakeService, path: str, body: dict[str, Any]) -> Any:
    """What OpenAI's client makes of the answer, all of a stream."""

    async def ask() -> Any:
        async with (
            client_of(service) as http,
            openai.AsyncOpenAI(base_url=http.base_url, api_key="any", http_client=http, max_retries=0) as client,
        ):
            create = client.completions.create if path == "/completions" else client.chat.completions.create
            answer = await create(**body)
            return [chunk async for chunk in answer] if body.get("stream") else answer

    return asyncio.run(ask())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize(("error", "status", "code", "kind"), FAILURES)
def test_before_the_answer_it_is_an_http_error(
    error: Exception,
    status: int,
    code: str | None,
    kind: type[Exception],
    path: str,
    body: dict[str, Any],
    stream: bool,
) -> None:
    with pytest.raises(kind) as raised:
        asked_of(FakeService(error=error), path, {**body, "stream": stream})
    assert raised.value.status_code == status
    assert raised.value.code == code
    assert str(error) in raised.value.message
    assert raised.value.type == ("server_error" if status >= 500 else "invalid_request_error")
    assert ("retry-after" in raised.value.response.headers) == (status in (429, 503))


def test_what_nobody_foresaw_is_not_told() -> None:
    answer = post(FakeService(error=KeyError("a secret")), "/completions", COMPLETION)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("error", [DeadlineError("late"), EngineFailedError("broken"), RequestError("second prompt")])
def test_within_a_stream_it_is_its_last_event(error: Exception, path: str, body: dict[str, Any]) -> None:
    service = FakeService((FakeDelta("begun"),), error)
    answer = post(service, path, {**body, "stream": True})
    *_, begun, last = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    assert answer.status_code == 200
    assert "begun" in begun
    assert json.loads(last)["error"]["message"] == str(error)
    assert "[DONE]" not in answer.text
    with pytest.raises(openai.APIError, match=str(error)):
        asked_of(service, path, {**body, "stream": True})


def test_one_prompt_that_fails_ends_all() -> None:
    class SecondFails(FakeService):
        async def stream(self, request: Any) -> Any:
            if request.prompt == "bad":
                raise RequestError("a bad prompt")
            async for item in super().stream(request):
                yield item

    service = SecondFails((FakeDelta("begun"),), waits=True)
    answer = post(service, "/completions", {"model": "tiny", "prompt": ["good", "bad", "good"]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "a bad prompt"
    assert service.num_left == 2


def test_each_prompt_has_its_own_request_id() -> None:
    service = FakeService((output_of("x"),))
    answer = post(service, "/completions", {"model": "tiny", "prompt": ["a", "b"], "priority": 3})
    name = answer.json()["id"].removeprefix("cmpl-")
    assert [request.request_id for request in service.seen] == [f"{name}-0", f"{name}-1"]
    assert [request.priority for request in service.seen] == [3, 3]
    assert answer.headers["x-request-id"] == name


Message = dict[str, Any]


def run_until_left(service: FakeService, body: dict[str, Any], send: Callable[[Message], Awaitable[None]]) -> None:
    """One request of a client that leaves after a moment."""

    async def main() -> None:
        left = asyncio.Event()
        parts = [{"type": "http.request", "body": json.dumps(body).encode()}]

        async def receive() -> Message:
            if parts:
                return parts.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        asyncio.get_running_loop().call_later(0.05, left.set)
        await asyncio.wait_for(fake_app(service)(post_scope("/v1/completions"), receive, send), 60)

    asyncio.run(main())


def post_scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("items", [(), (FakeDelta("begun"),)])
def test_who_leaves_ends_the_request(stream: bool, items: tuple[FakeDelta, ...]) -> None:
    service = FakeService(items, waits=True)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    run_until_left(service, {**COMPLETION, "prompt": ["a", "b"], "stream": stream}, send)
    assert service.num_left == 2
    assert not any(b"[DONE]" in message.get("body", b"") for message in sent)
    assert any(b"begun" in message.get("body", b"") for message in sent) == (stream and bool(items))


@pytest.mark.parametrize("error", [None, DeadlineError("late")])
def test_a_stream_ends_once(error: Exception | None) -> None:
    items = (FakeDelta("begun"),) if error else (FakeDelta("begun"), output_of("begun"))
    service = FakeService(items, error)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    run_until_left(service, {**COMPLETION, "stream": True}, send)
    parts = [message["more_body"] for message in sent if message["type"] == "http.response.body"]
    assert parts == [True] * (len(parts) - 1) + [False]


def test_who_reads_nothing_and_leaves_ends_the_request() -> None:
    service = FakeService((FakeDelta("begun"),), waits=True)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    run_until_left(service, {**COMPLETION, "stream": True}, send)
    assert len(sent) == 2
    assert service.num_left == 1
