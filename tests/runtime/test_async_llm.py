"""AsyncLLM: many streams over one batch."""

from __future__ import annotations

import asyncio

import pytest

from sparsespec.builder.errors import RequestError
from sparsespec.runtime.async_llm import AsyncLLM
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import OutputDelta, RequestOutput
from sparsespec.runtime.sampling_params import SamplingParams
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
