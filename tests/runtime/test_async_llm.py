"""AsyncLLM: many streams over one batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from sparsespec.builder.errors import RequestError
from sparsespec.runtime.async_llm import AsyncLLM
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.detokenizer import Detokenizer, TokenBlock
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import CompletionOutput, OutputDelta, RequestOutput
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.text import ChatInput, ChatMessage, TextCodec
from tiny_llm import assert_all_pages_free, first_answers, greedy, random_prompts, tiny_engine

SPECULATION = SpeculationConfig(k=4, min_budget=16)
PROMPTS = random_prompts((40, 22, 61, 35, 9, 50))


@pytest.fixture
def llm() -> LLM:
    return LLM(tiny_engine(), SPECULATION)


def test_streams_share_the_batch(llm: LLM) -> None:
    expected = first_answers(LLM(tiny_engine(), SPECULATION).generate(PROMPTS, greedy(30)))

    async def stream(engine: AsyncLLM, prompt: tuple[int, ...]) -> RequestOutput:
        tokens: list[int] = []
        async for item in engine.generate(prompt, greedy(30)):
            if isinstance(item, RequestOutput):
                assert tuple(tokens) == item.outputs[0].token_ids
                return item
            tokens += item.token_ids
        raise RuntimeError("the stream ended without an output")

    async def main() -> list[RequestOutput]:
        async with AsyncLLM(llm) as engine:
            return list(await asyncio.gather(*(stream(engine, prompt) for prompt in PROMPTS)))

    assert first_answers(asyncio.run(main())) == expected
    assert_all_pages_free(llm)


def test_several_answers_in_one_stream(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=5, n=3, ignore_eos=True)
    expected = LLM(tiny_engine(), SPECULATION).generate([PROMPTS[0]], params)[0]

    async def main() -> list[OutputDelta | RequestOutput]:
        async with AsyncLLM(llm) as engine:
            return [item async for item in engine.generate(PROMPTS[0], params)]

    *deltas, last = asyncio.run(main())
    assert isinstance(last, RequestOutput)
    assert last.outputs == expected.outputs
    for answer in last.outputs:
        own = [delta for delta in deltas if isinstance(delta, OutputDelta) and delta.index == answer.index]
        assert "".join(delta.text for delta in own) == answer.text


def test_leaving_a_stream_cancels_the_request(llm: LLM) -> None:
    async def main() -> None:
        async with AsyncLLM(llm) as engine:
            stream = engine.generate(PROMPTS[0], greedy(200))
            item = await anext(stream)
            assert isinstance(item, OutputDelta)
            await stream.aclose()
            async for last in engine.generate(PROMPTS[1], greedy(5)):
                item = last
            assert isinstance(item, RequestOutput)

    asyncio.run(main())
    assert not llm.has_requests
    assert_all_pages_free(llm)


def test_bad_request_fails_alone(llm: LLM) -> None:
    async def main() -> tuple[RequestOutput | OutputDelta, ...]:
        async with AsyncLLM(llm) as engine:
            good = engine.generate(PROMPTS[0], greedy(20))
            items = [await anext(good)]
            with pytest.raises(RequestError, match="empty"):
                await anext(engine.generate((), greedy(5)))
            items += [item async for item in good]
            return tuple(items)

    assert isinstance(asyncio.run(main())[-1], RequestOutput)


@pytest.mark.parametrize("bad", ["\ud800x", None, ["a"], 7])
def test_no_prompt_is_bad_enough_to_end_another_stream(llm: LLM, bad: str) -> None:
    async def main() -> OutputDelta | RequestOutput:
        async with AsyncLLM(llm) as engine:
            good = engine.generate(PROMPTS[0], greedy(20))
            await anext(good)
            with pytest.raises(RequestError):
                await anext(engine.generate(bad, greedy(5)))
            return [item async for item in good][-1]

    assert isinstance(asyncio.run(main()), RequestOutput)


def test_close_ends_running_streams(llm: LLM) -> None:
    async def main() -> None:
        engine = AsyncLLM(llm)
        stream = engine.generate(PROMPTS[0], greedy(200))
        await anext(stream)
        await engine.close()
        with pytest.raises(RuntimeError, match="closed"):
            async for _ in stream:
                pass
        with pytest.raises(RuntimeError, match="closed"):
            await anext(engine.generate(PROMPTS[0], greedy(5)))

    asyncio.run(main())
    assert_all_pages_free(llm)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failed_step_ends_every_stream(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[OutputDelta]:
        raise MemoryError("no memory for a step")

    async def main() -> None:
        engine = AsyncLLM(llm)
        monkeypatch.setattr(llm, "advance", fail)
        with pytest.raises(MemoryError, match="no memory"):
            await anext(engine.generate(PROMPTS[0], greedy(5)))
        await engine.close()

    asyncio.run(main())


@pytest.mark.parametrize("min_tokens", [0, 12])
def test_stop_texts_are_found_late_and_end_answers_alike(llm: LLM, min_tokens: int) -> None:
    """Text is read in another thread while the step loop goes on: outputs are those of an LLM that looks at once."""
    params = SamplingParams(
        max_tokens=60, min_tokens=min_tokens, temperature=1.0, seed=5, n=3, stop=("th", "e", "!"), logprobs=1
    )
    expected = LLM(tiny_engine(), SPECULATION).generate(PROMPTS, params)

    async def stream(engine: AsyncLLM, prompt: tuple[int, ...]) -> list[OutputDelta | RequestOutput]:
        return [item async for item in engine.generate(prompt, params)]

    async def main() -> list[list[OutputDelta | RequestOutput]]:
        async with AsyncLLM(llm) as engine:
            return list(await asyncio.gather(*(stream(engine, prompt) for prompt in PROMPTS)))

    reasons = []
    for items, output in zip(asyncio.run(main()), expected, strict=True):
        last = items[-1]
        assert isinstance(last, RequestOutput)
        assert unrounded(last) == unrounded(output)
        for answer in last.outputs:
            own = [item for item in items if isinstance(item, OutputDelta) and item.index == answer.index]
            assert "".join(delta.text for delta in own) == answer.text
            assert tuple(token for delta in own for token in delta.token_ids) == answer.token_ids
            assert [delta.finish_reason for delta in own][-1] == answer.finish_reason
            reasons.append(answer.finish_reason)
    assert reasons.count("stop") >= 3
    assert_all_pages_free(llm)


def unrounded(output: RequestOutput) -> list[CompletionOutput]:
    """Without values that steps of other batches round otherwise."""
    assert all([each.token_id for each in one.logprobs] == list(one.token_ids) for one in output.outputs)
    return [replace(one, logprobs=()) for one in output.outputs]


@pytest.mark.parametrize("steps", [1, 4, 40])
def test_a_stop_text_may_be_found_any_number_of_steps_late(llm: LLM, steps: int) -> None:
    """Even once the answer has ended by its length."""
    params = SamplingParams(max_tokens=30, temperature=1.0, seed=5, stop=("th", "e", "!"), logprobs=1)
    expected = LLM(tiny_engine(), SPECULATION).generate(PROMPTS[:4], params)
    request_ids = [llm.add_request(prompt, params) for prompt in PROMPTS[:4]]
    while llm.has_requests:
        late = [delta for _ in range(steps) if llm.has_requests for delta in llm.advance()]
        for delta in (given.up_to_stop() for given in late):
            if delta is not None:
                llm.settle(delta)
    assert [unrounded(llm.take_output(request_id)) for request_id in request_ids] == list(map(unrounded, expected))
    assert any(each.outputs[0].finish_reason == "stop" for each in expected)
    assert_all_pages_free(llm)


def test_text_is_decoded_outside_of_the_step_loop(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    push = Detokenizer.together

    def recording(self: Detokenizer, token_ids: Sequence[int]) -> TokenBlock | None:
        threads.append(threading.current_thread().name)
        return push(self, token_ids)

    monkeypatch.setattr(Detokenizer, "together", recording)

    async def main() -> None:
        async with AsyncLLM(llm) as engine:
            _ = [item async for item in engine.generate(PROMPTS[0], greedy(20))]

    asyncio.run(main())
    assert threads
    assert all(name.startswith("sparsespec-text") for name in threads)


def test_a_failure_to_decode_ends_its_own_stream_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    read = OutputDelta.up_to_stop

    def fail(delta: OutputDelta) -> OutputDelta | None:
        if delta.request_id == 0:
            raise MemoryError("no memory for a text")
        return read(delta)

    async def main() -> OutputDelta | RequestOutput:
        async with AsyncLLM(llm) as engine:
            monkeypatch.setattr(OutputDelta, "up_to_stop", fail)
            first, second = (engine.generate(prompt, greedy(60)) for prompt in PROMPTS[:2])
            with pytest.raises(MemoryError, match="no memory"):
                await anext(first)
            return [item async for item in second][-1]

    assert isinstance(asyncio.run(main()), RequestOutput)
    assert not llm.has_requests
    assert_all_pages_free(llm)


def test_a_stream_ends_when_its_time_is_up(llm: LLM) -> None:
    async def main() -> None:
        async with AsyncLLM(llm) as engine:
            with pytest.raises(TimeoutError, match=r"longer than 0\.01 s"):
                await consume(engine.generate(PROMPTS[0], greedy(200), timeout_s=0.01))
            done = [item async for item in engine.generate(PROMPTS[1], greedy(5), timeout_s=600)]
            assert isinstance(done[-1], RequestOutput)

    asyncio.run(main())
    assert_all_pages_free(llm)


def test_the_more_urgent_request_is_let_in_first() -> None:
    llm = LLM(tiny_engine(), SPECULATION, RuntimeConfig(max_batch_size=1))
    ended: list[str] = []

    async def run(engine: AsyncLLM, name: str, priority: int) -> None:
        await consume(engine.generate(PROMPTS[0], greedy(20), priority))
        ended.append(name)

    async def main() -> None:
        async with AsyncLLM(llm) as engine:
            first = engine.generate(PROMPTS[1], greedy(100))
            await anext(first)
            rest = [run(engine, "later", 1), run(engine, "sooner", 0)]
            await asyncio.gather(*rest, asyncio.ensure_future(consume(first)))

    asyncio.run(main())
    assert ended == ["sooner", "later"]


async def consume(stream: AsyncIterator[OutputDelta | RequestOutput]) -> None:
    async for _ in stream:
        pass


def test_prompts_are_encoded_outside_of_the_step_loop(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    read = TextCodec.encode_chat

    def recording(codec: TextCodec, chat: ChatInput) -> list[int]:
        threads.append(threading.current_thread().name)
        return read(codec, chat)

    monkeypatch.setattr(TextCodec, "encode_chat", recording)

    async def main() -> None:
        async with AsyncLLM(llm) as engine:
            await consume(engine.generate([ChatMessage("user", "hi")], greedy(5)))

    asyncio.run(main())
    assert [name.split("_")[0] for name in threads] == ["sparsespec-prompts"]


def test_deltas_tell_accepted_drafts_and_log_probabilities() -> None:
    llm = LLM(tiny_engine(), SpeculationConfig(k=4, min_budget=64))
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True, logprobs=2)

    async def main() -> list[OutputDelta | RequestOutput]:
        async with AsyncLLM(llm) as engine:
            return [item async for item in engine.generate(PROMPTS[0], params)]

    *deltas, last = asyncio.run(main())
    assert isinstance(last, RequestOutput)
    answer = last.outputs[0]
    own = [delta for delta in deltas if isinstance(delta, OutputDelta)]
    accepted = [min(check.num_accepted, check.num_tokens) for check in answer.verifications]
    assert [sum(delta.accepted) for delta in own] == [0, *accepted]
    assert sum(accepted) > 0
    assert tuple(each for delta in own for each in delta.logprobs) == answer.logprobs


def test_a_failure_to_hand_out_texts_ends_every_stream(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_engine: AsyncLLM, _stream: object, _delta: OutputDelta) -> None:
        raise MemoryError("no memory for an end")

    async def main() -> None:
        engine = AsyncLLM(llm)
        monkeypatch.setattr(AsyncLLM, "_note_end", fail)
        streams = [engine.generate(prompt, greedy(200)) for prompt in PROMPTS[:2]]
        for result in await asyncio.gather(*map(consume, streams), return_exceptions=True):
            assert isinstance(result, MemoryError)
        assert isinstance(engine.failure, MemoryError)
        await engine.close()

    asyncio.run(main())
    assert_all_pages_free(llm)


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_deltas_are_put_together_within_an_interval(stop: tuple[str, ...]) -> None:
    """First and last ones are not kept waiting; nothing is lost or marked otherwise."""
    params = SamplingParams(max_tokens=60, temperature=1.0, seed=5, n=2, ignore_eos=True, logprobs=1, stop=stop)

    async def main(stream_interval_s: float) -> list[OutputDelta | RequestOutput]:
        llm = LLM(tiny_engine(), SpeculationConfig(k=4, min_budget=64))
        async with AsyncLLM(llm, stream_interval_s) as engine:
            return [item async for item in engine.generate(PROMPTS[0], params)]

    *few, output = asyncio.run(main(3600))
    *many, expected = asyncio.run(main(0))
    assert isinstance(output, RequestOutput)
    assert isinstance(expected, RequestOutput)
    assert unrounded(output) == unrounded(expected)
    for index in range(2):
        rare, frequent = (
            [each for each in deltas if isinstance(each, OutputDelta) and each.index == index] for deltas in (few, many)
        )
        assert [len(delta.token_ids) for delta in rare] == [1, 59]
        assert len(frequent) > 2
        assert "".join(delta.text for delta in rare) == output.outputs[index].text
        for of in (lambda delta: delta.token_ids, lambda delta: delta.accepted, lambda delta: delta.verifications):
            assert [each for delta in rare for each in of(delta)] == [each for delta in frequent for each in of(delta)]
        assert tuple(each for delta in rare for each in delta.logprobs) == output.outputs[index].logprobs
        assert rare[-1].finish_reason == "length"
