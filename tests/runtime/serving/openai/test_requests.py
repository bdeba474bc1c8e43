"""Which requests are taken, which are refused and how; the names of fields in errors; what reaches the service."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from fake_service import FakeService, client_of, output_of, post
from sparsespec.builder.config_io import MAX_INT
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.serving.openai.sampling_fields import MAX_SEED
from sparsespec.runtime.text import ChatMessage

COMPLETION = {"model": "tiny", "prompt": "abc"}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "abc"}]}
USER = {"role": "user", "content": "x"}


def answering() -> FakeService:
    return FakeService((output_of("yes"),))


def params_of(path: str, body: dict[str, Any]) -> SamplingParams:
    service = answering()
    answer = post(service, path, body)
    assert answer.status_code == 200, answer.text
    return service.seen[0].params


def error_of(path: str, body: Any) -> dict[str, Any]:
    answer = post(answering(), path, body)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


def test_defaults_are_openais() -> None:
    assert params_of("/completions", COMPLETION) == SamplingParams(max_tokens=16)
    assert params_of("/chat/completions", CHAT) == SamplingParams(max_tokens=MAX_INT)


def test_null_is_the_default() -> None:
    names = ("n", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop", "stream",
             "stream_options", "user", "logit_bias", "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos",
             "stop_token_ids", "priority", "return_tokens", "max_tokens", "logprobs")  # fmt: skip
    nulls = dict.fromkeys(names)
    assert params_of("/completions", {**COMPLETION, **nulls}) == SamplingParams(max_tokens=16)
    assert params_of("/chat/completions", {**CHAT, **nulls}) == SamplingParams(max_tokens=MAX_INT)


def test_each_field_reaches_the_sampler() -> None:
    values: dict[str, Any] = {
        "max_tokens": 9, "min_tokens": 2, "temperature": 0.5, "top_k": 3, "top_p": 0.25, "min_p": 0.125,
        "repetition_penalty": 1.5, "presence_penalty": -1.0, "frequency_penalty": 1.0, "seed": MAX_SEED, "stop": ["a"],
        "stop_token_ids": [7], "ignore_eos": True, "n": 2,
    }  # fmt: skip
    expected = SamplingParams(**values, logprobs=4)
    assert params_of("/completions", {**COMPLETION, **values, "logprobs": 4}) == expected
    assert params_of("/chat/completions", {**CHAT, **values, "logprobs": True, "top_logprobs": 4}) == expected


def test_a_whole_number_may_be_written_with_a_point() -> None:
    """JSON has one kind of numbers."""
    service = answering()
    body = {"model": "tiny", "prompt": [[1.0, 2]], "max_tokens": 5.0, "n": 2.0, "seed": 3.0, "stop_token_ids": [4.0]}
    assert post(service, "/completions", body).status_code == 200
    assert service.seen[0].prompt == (1, 2)
    assert service.seen[0].params == SamplingParams(max_tokens=5, n=2, seed=3, stop_token_ids=(4,))


def test_a_chats_limit_has_two_names() -> None:
    body = {**CHAT, "max_tokens": 9, "max_completion_tokens": 5}
    assert params_of("/chat/completions", body).max_tokens == 5
    assert params_of("/chat/completions", {**CHAT, "logprobs": True}).logprobs == 0


def test_messages_become_a_template_s() -> None:
    service = answering()
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None, "function_call": None,
         "tool_calls": None},
    ]  # fmt: skip
    assert post(service, "/chat/completions", {"model": "tiny", "messages": messages}).status_code == 200
    assert service.seen[0].prompt == (
        ChatMessage("system", "d"),
        ChatMessage("system", "s"),
        ChatMessage("user", "one\ntwo"),
        ChatMessage("assistant", "a"),
    )


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [(1, 2)]), ([[1], [2, 3]], [(1,), (2, 3)]), ([0], [(0,)])],
)
def test_prompts_have_four_forms(prompt: Any, expected: list[Any]) -> None:
    service = answering()
    assert post(service, "/completions", {**COMPLETION, "prompt": prompt}).status_code == 200
    assert [request.prompt for request in service.seen] == expected


@pytest.mark.parametrize(
    "field",
    [
        {"user": "me"}, {"metadata": {"a": "b"}}, {"store": True}, {"service_tier": "auto"}, {"safety_identifier": "x"},
        {"parallel_tool_calls": False}, {"prompt_cache_key": "x"}, {"prompt_cache_retention": "24h"}, {"tools": []},
        {"tool_choice": "auto"}, {"functions": []}, {"response_format": {"type": "text"}}, {"modalities": ["text"]},
        {"logit_bias": {}}, {"verbosity": "medium"}, {"reasoning_effort": None}, {"audio": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_nothing_is_taken(field: dict[str, Any]) -> None:
    assert params_of("/chat/completions", {**CHAT, **field}) == SamplingParams(max_tokens=MAX_INT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]), ("tool_choice", "required"),
        ("functions", [{"name": "f"}]), ("function_call", {"name": "f"}), ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": 1}), ("audio", {"voice": "x", "format": "wav"}), ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": "x"}), ("reasoning_effort", "low"), ("verbosity", "high"),
        ("web_search_options", {}), ("moderation", {"model": "x"}),
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused(name: str, value: Any) -> None:
    error = error_of("/chat/completions", {**CHAT, name: value})
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert name in error["message"]


@pytest.mark.parametrize(
    ("path", "field", "param"),
    [
        ("/completions", {"suffix": "x"}, "suffix"),
        ("/completions", {"best_of": 2}, "best_of"),
        ("/completions", {"echo": True, "logprobs": 1}, "echo"),
        ("/completions", {"messages": []}, "messages"),
        ("/completions", {"prompt": []}, "prompt"),
        ("/completions", {"prompt": [[]]}, "prompt[0]"),
        ("/completions", {"prompt": [1, -1]}, "prompt[1]"),
        ("/completions", {"prompt": [[1], [True]]}, "prompt[1][0]"),
        ("/completions", {"prompt": None}, "prompt"),
        ("/completions", {"logprobs": 21}, "logprobs"),
        ("/completions", {"logprobs": True}, "logprobs"),
        ("/completions", {"max_tokens": 0}, "max_tokens"),
        ("/completions", {"max_tokens": 1.5}, "max_tokens"),
        ("/completions", {"max_tokens": "5"}, "max_tokens"),
        ("/completions", {"n": 129}, "n"),
        ("/completions", {"seed": -1}, "seed"),
        ("/completions", {"seed": MAX_SEED + 1}, "seed"),
        ("/completions", {"seed": 0.5}, "seed"),
        ("/completions", {"temperature": 10**400}, "temperature"),
        ("/completions", {"top_p": 0}, "top_p"),
        ("/completions", {"stop": ["a"] * 65}, "stop"),
        ("/completions", {"stop": [""]}, "stop[0]"),
        ("/completions", {"stop_token_ids": list(range(17))}, "stop_token_ids"),
        ("/completions", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("/completions", {"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ("/completions", {"model": None}, "model"),
        ("/chat/completions", {"temperatur": 1}, "temperatur"),
        ("/chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("/chat/completions", {"messages": []}, "messages"),
        ("/chat/completions", {"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1]"),
        ("/chat/completions", {"messages": [{**USER, "name": "me"}]}, "messages[0].name"),
        ("/chat/completions", {"messages": [{**USER, "content": None}]}, "messages[0].content"),
        ("/chat/completions", {"messages": [{**USER, "content": []}]}, "messages[0].content"),
        ("/chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            "/chat/completions",
            {"messages": [{**USER, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        (
            "/chat/completions",
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls",
        ),
    ],
)
def test_errors_name_the_field(path: str, field: dict[str, Any], param: str) -> None:
    body = COMPLETION if path == "/completions" else CHAT
    error = error_of(path, {**body, **field})
    assert error["param"] == param
    assert param.split("[")[0].split(".")[0] in error["message"]


def test_fields_that_do_not_go_together_are_named_in_the_message() -> None:
    assert (
        "min_tokens must be in 0..max_tokens, found 17"
        in error_of("/completions", {**COMPLETION, "min_tokens": 17})["message"]
    )


def send_raw(body: bytes, content_type: str | None = "application/json") -> httpx.Response:
    async def send() -> httpx.Response:
        headers = {} if content_type is None else {"content-type": content_type.encode()}
        async with client_of(answering()) as client:
            return await client.post("/completions", content=body, headers=headers)

    return asyncio.run(send())


GOOD = b'{"model": "tiny", "prompt": "abc"}'
NO_JSON = {
    "empty": b"", "broken": b'{"model":', "twice": GOOD + GOOD, "not UTF-8": b'{"model": "tiny", "prompt": "\xff"}',
    "UTF-16": GOOD.decode().encode("utf-16"), "NaN": b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
    "infinity": b'{"model": "tiny", "prompt": "a", "temperature": -Infinity}', "deep": b"[" * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000, "deep objects": b'{"a":' * 100_000,
    "many digits": b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
    "beyond a double": b'{"model": "tiny", "prompt": "a", "temperature": 1e999}',
    "surrogate": rb'{"model": "tiny", "prompt": "\ud800"}', "surrogate name": rb'{"\udfff": 1}', "list": b"[]",
    "null": b"null", "text": b'"abc"', "form": b"model=tiny&prompt=abc",
}  # fmt: skip


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_no_json_is_a_bad_request(name: str) -> None:
    answer = send_raw(NO_JSON[name])
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", ["NaN", "infinity", "surrogate", "deep"])
def test_the_standard_of_json_is_kept(name: str) -> None:
    assert "the body is no JSON: " in send_raw(NO_JSON[name]).json()["error"]["message"]


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "nonsense", "é/json"]
)
def test_another_content_type_is_named(content_type: str | None) -> None:
    answer = send_raw(GOOD, content_type)
    assert answer.status_code == 400
    assert "content-type application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON"])
def test_json_has_several_spellings(content_type: str) -> None:
    assert send_raw(GOOD, content_type).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/completions", 405), ("DELETE", "/models", 405), ("GET", "/models/x/y", 404)],
)
def test_other_paths_and_methods(method: str, path: str, status: int) -> None:
    async def send() -> httpx.Response:
        async with client_of(answering()) as client:
            return await client.request(method, path)

    answer = asyncio.run(send())
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert ("allow" in answer.headers) == (status == 405)
