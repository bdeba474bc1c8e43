"""The path of requests from outside: limits, errors, metrics and logs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from sparsespec.builder.errors import RequestError
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import OutputDelta, RequestOutput
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.serving.histogram import MetricFamily
from sparsespec.runtime.serving.logs import LOGGER, JsonLines
from sparsespec.runtime.serving.metrics import ServiceMetrics
from sparsespec.runtime.serving.openai.parallel_prompts import run_prompts
from sparsespec.runtime.serving.request_record import OUTCOMES, RequestEnded
from sparsespec.runtime.serving.service import Service, ServiceRequest
from sparsespec.runtime.serving.service_config import ServiceConfig
from sparsespec.runtime.serving.service_errors import DeadlineError, DrainingError, EngineFailedError, OverloadedError
from sparsespec.runtime.text import ChatMessage
from tiny_llm import assert_all_pages_free, first_answers, greedy, random_prompts, tiny_engine

SPECULATION = SpeculationConfig(k=4, min_budget=64)
PROMPTS = random_prompts((40, 22, 61, 35, 9, 50))


class Served:
    """A service over a tiny engine, and what it logged."""

    def __init__(self, config: ServiceConfig = ServiceConfig()) -> None:
        metrics = ServiceMetrics()
        self.llm = LLM(tiny_engine(), SPECULATION, recorder=metrics.steps)
        self.service = Service(self.llm, config, metrics)

    def ask(self, number: int, max_tokens: int = 20) -> ServiceRequest:
        return ServiceRequest(f"r{number}", PROMPTS[number % len(PROMPTS)], greedy(max_tokens))

    async def answer(self, request: ServiceRequest) -> RequestOutput:
        items = [item async for item in self.service.stream(request)]
        assert isinstance(items[-1], RequestOutput)
        return items[-1]

    def family(self, name: str) -> MetricFamily:
        families = self.service.metric_families()
        return next(family for family in families if family.name == f"sparsespec_{name}")

    def number(self, name: str) -> float:
        (sample,) = self.family(name).samples
        return sample.value

    def outcomes(self) -> dict[str, float]:
        samples = {dict(sample.labels)["outcome"]: sample.value for sample in self.family("requests").samples}
        assert tuple(samples) == OUTCOMES
        return {name: value for name, value in samples.items() if value}


def serve(work: Callable[[Served], Awaitable[None]], config: ServiceConfig = ServiceConfig()) -> Served:
    """Run work with a service, close it, and check that nothing is left behind."""

    async def main() -> Served:
        served = Served(config)
        await work(served)
        await served.service.close()
        return served

    served = asyncio.run(main())
    assert_all_pages_free(served.llm)
    return served


async def consume(stream: AsyncIterator[OutputDelta | RequestOutput]) -> None:
    async for _ in stream:
        pass


def ended(caplog: pytest.LogCaptureFixture) -> list[RequestEnded]:
    return [record.msg for record in caplog.records if isinstance(record.msg, RequestEnded)]


def test_answers_are_the_engines_and_everything_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    expected = first_answers(LLM(tiny_engine(), SPECULATION).generate(PROMPTS, greedy(20)))
    answers: list[RequestOutput] = []

    async def work(served: Served) -> None:
        answers.extend(await asyncio.gather(*(served.answer(served.ask(number)) for number in range(6))))

    served = serve(work)
    assert first_answers(answers) == expected
    assert served.outcomes() == {"finished": 6}
    assert served.number("output_tokens") == 120
    assert served.number("prompt_tokens") == sum(map(len, PROMPTS))
    assert served.number("answers_running") == served.number("kv_cache_usage") == 0
    checks = [check for output in answers for check in output.outputs[0].verifications if check.num_drafts > 0]
    accepted = served.family("accepted_drafts").histogram
    assert accepted is not None
    assert (accepted.num_values, accepted.total) == (len(checks), sum(check.num_accepted for check in checks))
    assert served.number("drafts") == sum(check.num_drafts for check in checks)
    steps, batches = served.family("step_seconds").histogram, served.family("batch_size").histogram
    assert steps is not None
    assert batches is not None
    assert steps.num_values >= batches.num_values > 0
    assert batches.total / batches.num_values > 2
    logged = {line.request_id: line for line in ended(caplog)}
    assert sorted(logged) == [f"r{number}" for number in range(6)]
    assert {(line.output_tokens, line.finish_reasons) for line in logged.values()} == {(20, ("length",))}
    assert sum(line.accepted_drafts for line in logged.values()) <= accepted.total


def test_a_chat_is_answered() -> None:
    async def work(served: Served) -> None:
        chat = (ChatMessage("user", "hi"),)
        output = await served.answer(ServiceRequest("chat", chat, greedy(5)))
        assert output.prompt_token_ids == tuple(served.llm.encode_chat("hi"))

    assert serve(work).outcomes() == {"finished": 1}


def test_as_many_as_may_run_or_wait_and_no_more() -> None:
    async def work(served: Served) -> None:
        streams = [served.service.stream(served.ask(number, 200)) for number in range(3)]
        for stream in streams:
            await anext(stream)
        with pytest.raises(OverloadedError, match="3 answers run or wait, of at most 3"):
            await anext(served.service.stream(served.ask(4)))
        await streams[0].aclose()
        await served.answer(served.ask(4))
        for stream in streams:
            await stream.aclose()

    served = serve(work, ServiceConfig(max_requests=3))
    assert served.outcomes() == {"finished": 1, "cancelled": 3, "overloaded": 1}


def test_every_answer_of_a_prompt_takes_a_place() -> None:
    async def work(served: Served) -> None:
        stream = served.service.stream(replace(served.ask(0), params=SamplingParams(max_tokens=100, n=3)))
        await anext(stream)
        with pytest.raises(OverloadedError):
            await anext(served.service.stream(served.ask(1)))
        with pytest.raises(RequestError, match=r"at most 3 answers.*found 4"):
            await anext(served.service.stream(replace(served.ask(0), params=SamplingParams(n=4))))
        await stream.aclose()

    serve(work, ServiceConfig(max_requests=3))


def test_prompts_of_one_request_that_never_fit_are_refused() -> None:
    async def work(served: Served) -> None:
        with pytest.raises(RequestError, match=r"at most 3 answers.*found 4"):
            await anext(run_prompts(served.service, [served.ask(number) for number in range(4)]))
        assert (
            len([each async for each in run_prompts(served.service, [served.ask(number) for number in range(3)])]) > 3
        )

    assert serve(work, ServiceConfig(max_requests=3)).outcomes() == {"finished": 3}


def test_wrong_requests_fail_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)

    async def work(served: Served) -> None:
        good = served.service.stream(served.ask(0, 60))
        await anext(good)
        for bad in ((), (1, 999), "x" * 5000, "\ud800"):
            with pytest.raises(RequestError):
                await anext(served.service.stream(replace(served.ask(1), prompt=bad)))
        with pytest.raises(RequestError, match="priority"):
            await anext(served.service.stream(replace(served.ask(1), priority=2**40)))
        await consume(good)

    assert serve(work).outcomes() == {"finished": 1, "invalid": 5}
    assert [line.error is None for line in ended(caplog)] == [False] * 5 + [True]


@pytest.mark.parametrize("own", [None, 100.0])
def test_time_is_limited_by_the_service(own: float | None) -> None:
    async def work(served: Served) -> None:
        with pytest.raises(DeadlineError, match=r"0\.01 s"):
            await consume(served.service.stream(replace(served.ask(0, 200), timeout_s=own)))

    assert serve(work, ServiceConfig(request_timeout_s=0.01)).outcomes() == {"timed_out": 1}


def test_time_is_limited_by_the_request() -> None:
    async def work(served: Served) -> None:
        with pytest.raises(DeadlineError, match=r"0\.01 s"):
            await consume(served.service.stream(replace(served.ask(0, 200), timeout_s=0.01)))

    assert serve(work).outcomes() == {"timed_out": 1}


def test_whoever_leaves_frees_its_pages() -> None:
    async def work(served: Served) -> None:
        task = asyncio.ensure_future(served.answer(served.ask(0, 200)))
        while served.service.status.running == 0:
            await asyncio.sleep(0.001)
        assert served.service.status.kv_cache_usage > 0
        task.cancel()
        await asyncio.wait([task])
        while served.service.status.kv_cache_usage > 0:
            await asyncio.sleep(0.001)

    assert serve(work).outcomes() == {"cancelled": 1}


def test_an_answer_that_is_read_slowly_keeps_no_place() -> None:
    async def work(served: Served) -> None:
        items = run_prompts(served.service, [served.ask(0, 60)])
        await anext(items)
        assert await served.service.drain(timeout_s=600)  # nobody has read the rest
        assert isinstance([item async for item in items][-1].item, RequestOutput)

    assert serve(work).outcomes() == {"finished": 1}


def test_draining_ends_what_has_begun_and_lets_nothing_in() -> None:
    async def work(served: Served) -> None:
        task = asyncio.ensure_future(served.answer(served.ask(0, 60)))
        while served.service.status.running == 0:
            await asyncio.sleep(0.001)
        drained = asyncio.ensure_future(served.service.drain(timeout_s=600))
        await asyncio.sleep(0)
        with pytest.raises(DrainingError, match="shutting down"):
            await anext(served.service.stream(served.ask(1)))
        assert await drained
        assert len((await task).outputs[0].token_ids) == 60

    assert serve(work).outcomes() == {"finished": 1, "draining": 1}


def test_what_takes_too_long_to_drain_is_ended_by_closing() -> None:
    async def work(served: Served) -> None:
        task = asyncio.ensure_future(served.answer(served.ask(0, 200)))
        while served.service.status.running == 0:
            await asyncio.sleep(0.001)
        assert not await served.service.drain(timeout_s=0.001)
        await served.service.close()
        with pytest.raises(DrainingError):
            await task

    assert serve(work).outcomes() == {"draining": 1}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failed_engine_says_so_to_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[OutputDelta]:
        raise MemoryError("no memory for a step")

    async def work(served: Served) -> None:
        first = served.service.stream(served.ask(0, 200))
        await anext(first)
        monkeypatch.setattr(served.llm, "advance", fail)
        with pytest.raises(EngineFailedError, match="its log says why"):
            await consume(first)
        assert served.service.status.failed
        with pytest.raises(EngineFailedError):
            await anext(served.service.stream(served.ask(1)))

    assert serve(work).outcomes() == {"failed": 2}


def test_status_tells_what_was_accepted_lately() -> None:
    async def work(served: Served) -> None:
        assert served.service.status.accepted_drafts_mean is None
        output = await served.answer(served.ask(0, 60))
        checks = [check for check in output.outputs[0].verifications if check.num_drafts > 0]
        status = served.service.status
        assert status.drafts_mean == 4
        assert status.accepted_drafts_mean == sum(check.num_accepted for check in checks) / len(checks)
        assert 0 < status.tokens_per_second <= 6

    serve(work)


def test_a_log_line_is_json() -> None:
    event = RequestEnded("a\n", "finished", None, 1, 2, 3, 4, ("stop",), 0.5, 1.0)
    line = JsonLines().format(logging.LogRecord(LOGGER, logging.INFO, "", 0, event, None, None))
    assert "\n" not in line
    values = json.loads(line)
    assert (values["event"], values["request_id"], values["level"]) == ("request_ended", "a\n", "info")
    text = logging.LogRecord("other", logging.WARNING, "", 0, "%d of %d", (1, 2), None)
    assert json.loads(JsonLines().format(text))["message"] == "1 of 2"
