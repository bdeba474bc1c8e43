"""OpenAI's own client over a server with a tiny engine: its answers are those of LLM.generate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from http_server_thread import SPECULATION, WAIT_S, RunningServer, running_server
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import CompletionOutput, RequestOutput
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.serving.http.app import create_app
from sparsespec.runtime.serving.http.server_config import ServerConfig
from sparsespec.runtime.serving.service_config import ServiceConfig
from sparsespec.runtime.text import ChatMessage
from tiny_llm import tiny_engine

CONFIG = ServerConfig(engine_dir=Path("unused"), served_model_name="tiny/model", api_key="secret")
LIMITS = ServiceConfig(max_requests=64)
MODEL = "tiny/model"
CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is 1 + 1?"}]
CHAT_PROMPT = [ChatMessage("system", "Be short."), ChatMessage("user", "What is 1 + 1?")]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(tiny_engine(), create_app, CONFIG, LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0, timeout=WAIT_S) as made:
        yield made


def offline(prompt: Any, params: SamplingParams) -> RequestOutput:
    return LLM(tiny_engine(), SPECULATION).generate([prompt], params)[0]


def num_accepted(outputs: list[RequestOutput]) -> int:
    checks = [check for output in outputs for answer in output.outputs for check in answer.verifications]
    return sum(min(check.num_accepted, check.num_tokens) for check in checks)


def num_drafts(outputs: list[RequestOutput]) -> int:
    return sum(check.num_drafts for output in outputs for answer in output.outputs for check in answer.verifications)


def wait_until(holds: Callable[[], bool]) -> None:
    """Fails in the end."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_chat_is_answered_as_offline(client: openai.OpenAI) -> None:
    expected = offline(CHAT_PROMPT, SamplingParams(max_tokens=30, seed=7, n=2))
    for limit in ({"max_tokens": 30}, {"max_completion_tokens": 30}):
        found = client.chat.completions.create(model=MODEL, messages=CHAT, seed=7, n=2, **limit)
        assert [choice.message.content for choice in found.choices] == [answer.text for answer in expected.outputs]
        assert [choice.finish_reason for choice in found.choices] == [each.finish_reason for each in expected.outputs]
        assert [choice.index for choice in found.choices] == [0, 1]
        assert all(choice.message.role == "assistant" and choice.logprobs is None for choice in found.choices)
        assert (found.object, found.model) == ("chat.completion", MODEL)
        assert found.id.startswith("chatcmpl-")


def test_usage_tells_of_drafts(client: openai.OpenAI) -> None:
    outputs = [offline(text, SamplingParams(max_tokens=40, seed=3, n=2)) for text in ("one one one", "two")]
    found = client.completions.create(model=MODEL, prompt=["one one one", "two"], max_tokens=40, seed=3, n=2).usage
    assert found is not None
    assert found.prompt_tokens == sum(len(output.prompt_token_ids) for output in outputs)
    assert found.completion_tokens == sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
    assert found.total_tokens == found.prompt_tokens + found.completion_tokens
    details = found.completion_tokens_details
    assert details is not None
    assert details.accepted_prediction_tokens == num_accepted(outputs) > 0
    assert details.rejected_prediction_tokens == num_drafts(outputs) - num_accepted(outputs) > 0
    assert (details.reasoning_tokens, details.audio_tokens) == (0, 0)
    assert found.prompt_tokens_details is not None
    assert found.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("prompt", [["abc", "the thing"], [[5, 6, 7], [9, 8]]])
def test_choices_are_numbered_prompt_by_prompt(client: openai.OpenAI, prompt: list[Any]) -> None:
    params = SamplingParams(max_tokens=16, temperature=0.7, seed=11, n=3)
    expected = [answer.text for each in prompt for answer in offline(each, params).outputs]
    asked = {"model": MODEL, "prompt": prompt, "temperature": 0.7, "seed": 11, "n": 3, "best_of": 3}
    found = client.completions.create(**asked)
    assert [choice.text for choice in found.choices] == expected
    assert [choice.index for choice in found.choices] == list(range(6))
    streamed = [""] * 6
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == expected


def test_token_ids_are_one_prompt(client: openai.OpenAI) -> None:
    expected = offline([5, 6, 7], SamplingParams(max_tokens=16, temperature=0.0))
    found = client.completions.create(model=MODEL, prompt=[5, 6, 7], temperature=0)
    assert [choice.text for choice in found.choices] == [expected.outputs[0].text]


@pytest.mark.parametrize("prompt", ["see the sea", [5, 6, 70]])
def test_echo(server: RunningServer, client: openai.OpenAI, prompt: Any) -> None:
    shown = prompt if isinstance(prompt, str) else server.llm.engine.codec.decode(prompt)
    answer = offline(prompt, SamplingParams(max_tokens=8, seed=1)).outputs[0].text
    asked = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "seed": 1, "echo": True}
    assert client.completions.create(**asked).choices[0].text == shown + answer
    chunks = list(client.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].text == shown
    assert "".join(chunk.choices[0].text for chunk in chunks) == shown + answer


def test_stop_texts_end_answers(client: openai.OpenAI) -> None:
    whole = offline("abc", SamplingParams(max_tokens=60, seed=5)).outputs[0].text
    stop = next(character for character in whole[4:] if character.isascii())
    cut = whole[: whole.index(stop)]
    for given in (stop, [stop, "never\n\n\n"]):
        found = client.completions.create(model=MODEL, prompt="abc", max_tokens=60, seed=5, stop=given).choices[0]
        assert (found.text, found.finish_reason) == (cut, "stop")
        stream = client.completions.create(model=MODEL, prompt="abc", max_tokens=60, seed=5, stop=given, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == cut


def test_a_chat_is_streamed_role_first_and_reason_last(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": CHAT, "max_tokens": 30, "seed": 7}
    expected = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert {delta.role for delta in deltas[1:]} == {None}
    assert "".join(delta.content or "" for delta in deltas) == expected.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == expected.choices[0].finish_reason
    assert deltas[-1].content is None
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_usage_comes_last_where_asked_for(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": CHAT, "max_tokens": 30, "seed": 7, "n": 2}
    expected = client.chat.completions.create(**asked)
    *chunks, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage == expected.usage
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks)


def chat_logprobs(found: Any) -> list[tuple[bytes, float, list[tuple[bytes, float]]]]:
    return [
        (bytes(each.bytes), each.logprob, [(bytes(top.bytes), top.logprob) for top in each.top_logprobs])
        for each in found.content
    ]


def test_log_probabilities_of_a_chat(server: RunningServer, client: openai.OpenAI) -> None:
    utf8 = server.llm.engine.codec.token_bytes
    told = offline(CHAT_PROMPT, SamplingParams(max_tokens=20, seed=2, logprobs=3)).outputs[0].logprobs
    expected = [
        (utf8(each.token_id), each.logprob, [(utf8(token), logprob) for token, logprob in each.top]) for each in told
    ]
    asked = {"model": MODEL, "messages": CHAT, "max_tokens": 20, "seed": 2, "logprobs": True, "top_logprobs": 3}
    assert chat_logprobs(client.chat.completions.create(**asked).choices[0].logprobs) == expected
    chunks: list[ChatCompletionChunk] = list(client.chat.completions.create(**asked, stream=True))
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    assert [each for part in parts if part is not None for each in chat_logprobs(part)] == expected


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_completion(client: openai.OpenAI, stream: bool) -> None:
    told = offline("abc", SamplingParams(max_tokens=30, seed=4, logprobs=2)).outputs[0]
    asked = {"model": MODEL, "prompt": "abc", "max_tokens": 30, "seed": 4, "logprobs": 2}
    chunks = list(client.completions.create(**asked, stream=True)) if stream else [client.completions.create(**asked)]
    text = "".join(chunk.choices[0].text for chunk in chunks)
    found = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs is not None]
    assert [each for part in found for each in part.token_logprobs] == [each.logprob for each in told.logprobs]
    names = [each for part in found for each in part.tokens]
    offsets = [each for part in found for each in part.text_offset]
    top = [each for part in found for each in part.top_logprobs]
    assert len(names) == len(offsets) == len(top) == len(told.token_ids)
    assert offsets == sorted(offsets)
    for name, offset, alternatives, each in zip(names, offsets, top, told.logprobs, strict=True):
        if not name.startswith(("bytes:", "<|")):
            assert text[offset : offset + len(name)] == name
        assert alternatives[name] == each.logprob
        assert len(alternatives) in (2, 3)


def test_tokens_tell_which_were_drafted(client: openai.OpenAI) -> None:
    answer = offline("go go go go", SamplingParams(max_tokens=40, temperature=0.0)).outputs[0]
    drafted = drafted_tokens(answer)
    assert True in drafted
    assert False in drafted
    asked: dict[str, Any] = {"model": MODEL, "prompt": "go go go go", "max_tokens": 40, "temperature": 0}
    extra = {"return_tokens": True}
    whole = client.completions.create(**asked, extra_body=extra).choices[0].tokens
    parts = [chunk.choices[0].tokens for chunk in client.completions.create(**asked, stream=True, extra_body=extra)]
    for tokens in (whole, [token for part in parts for token in part]):
        assert [token["accepted_draft"] for token in tokens] == drafted
        spelled = b"".join(bytes(token["bytes"]) for token in tokens)
        assert spelled.decode(errors="replace") == answer.text


def drafted_tokens(answer: CompletionOutput) -> list[bool]:
    drafted = [False] * len(answer.token_ids)
    for check in answer.verifications:
        for place in range(min(check.num_accepted, check.num_tokens)):
            drafted[check.first_output + place] = True
    return drafted


def test_extensions_reach_the_sampler(client: openai.OpenAI) -> None:
    params = SamplingParams(
        max_tokens=24, min_tokens=3, top_k=9, min_p=0.05, top_p=0.9, repetition_penalty=1.2, presence_penalty=0.5,
        frequency_penalty=0.25, stop_token_ids=(40,), ignore_eos=True, seed=6,
    )  # fmt: skip
    found = client.completions.create(
        model=MODEL, prompt="abc", max_tokens=24, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.25, seed=6,
        extra_body={"min_tokens": 3, "top_k": 9, "min_p": 0.05, "repetition_penalty": 1.2, "stop_token_ids": [40],
                    "ignore_eos": True, "priority": -1},
    )  # fmt: skip
    assert found.choices[0].text == offline("abc", params).outputs[0].text


def test_many_at_once(server: RunningServer) -> None:
    expected = [offline(f"number {i}", SamplingParams(max_tokens=20, seed=i)).outputs[0].text for i in range(8)]

    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        asked = {"model": MODEL, "prompt": f"number {number}", "max_tokens": 20, "seed": number}
        if number % 2:
            return (await client.completions.create(**asked)).choices[0].text
        stream = await client.completions.create(**asked, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client:
            return list(await asyncio.gather(*(ask(client, number) for number in range(8))))

    assert asyncio.run(main()) == expected


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "sparsespec"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_errors_are_the_clients_own(server: RunningServer, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-4", prompt="a")
    assert unknown.value.code == "model_not_found"
    assert unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model=MODEL, prompt="a", temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="over max_seq_len"):
        client.completions.create(model=MODEL, prompt=[5] * 300)
    with pytest.raises(openai.BadRequestError, match="over max_seq_len"):
        client.completions.create(model=MODEL, prompt=[5] * 300, stream=True)
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def num_cancelled(server: RunningServer) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    (line,) = (line for line in lines if line.startswith('sparsespec_requests_total{outcome="cancelled"}'))
    return float(line.split()[-1])


def all_pages_are_free(server: RunningServer) -> bool:
    kv_cache = server.llm.kv_cache
    return kv_cache.num_free_pages == kv_cache.num_pages == kv_cache.num_unreserved_pages


def test_closing_a_stream_frees_its_pages(server: RunningServer, client: openai.OpenAI) -> None:
    before = num_cancelled(server)
    stream = client.completions.create(
        model=MODEL, prompt=["abc", "def"], n=16, max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert not all_pages_are_free(server)
    stream.close()
    wait_until(lambda: num_cancelled(server) == before + 2)
    wait_until(lambda: all_pages_are_free(server))


def test_a_whole_answer_that_nobody_waits_for_is_cancelled(server: RunningServer, client: openai.OpenAI) -> None:
    before = num_cancelled(server)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).completions.create(
            model=MODEL, prompt="abc", n=64, max_tokens=200, extra_body={"ignore_eos": True}
        )
    wait_until(lambda: num_cancelled(server) == before + 1)
    wait_until(lambda: all_pages_are_free(server))
    assert client.completions.create(model=MODEL, prompt="abc", max_tokens=1).choices[0].finish_reason == "length"


def test_one_too_many_is_told_to_come_again(server: RunningServer, client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "prompt": "abc", "max_tokens": 200, "extra_body": {"ignore_eos": True}}
    with client.completions.create(**asked, n=64, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(**asked)
        assert refused.value.code == "rate_limit_exceeded"
        assert refused.value.response.headers["retry-after"] == "1"
    wait_until(lambda: all_pages_are_free(server))
