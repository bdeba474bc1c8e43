"""Two loops over one list of verbs: the order they keep, and that their tokens are the same."""

from __future__ import annotations

import pytest

from sparsespec.runtime.config import Policy, RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import CompletionOutput
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.step_loop import OverlappedLoop, SynchronousLoop
from sparsespec.runtime.tracing import HostTrace
from tiny_llm import assert_all_pages_free, greedy, random_prompts, tiny_engine

SPECULATION = SpeculationConfig(k=4, min_budget=16)
PROMPTS = random_prompts((40, 22, 61, 35, 9, 50))


def answers(result_lag: int, policy: Policy, params: SamplingParams) -> list[CompletionOutput]:
    llm = LLM(tiny_engine(), SPECULATION, RuntimeConfig(result_lag=result_lag, policy=policy))
    assert isinstance(llm._loop, SynchronousLoop if result_lag == 0 else OverlappedLoop)
    found = [output.outputs[0] for output in llm.generate(PROMPTS, params)]
    assert_all_pages_free(llm)
    return found


@pytest.mark.parametrize("policy", ["unified", "lockstep"])
@pytest.mark.parametrize(
    "params", [greedy(30), SamplingParams(max_tokens=30, temperature=0.9, seed=3, stop=("th", "e", "a", "o", "Z", "{"))]
)
def test_both_loops_give_the_same_answers(policy: Policy, params: SamplingParams) -> None:
    """Text, reasons and verifications too: stop texts are found in different steps, and end answers alike."""
    synchronous = answers(0, policy, params)
    for lag in (1, 4):
        assert answers(lag, policy, params) == synchronous
    if params.stop:
        assert any(answer.finish_reason == "stop" for answer in synchronous)


@pytest.mark.parametrize(
    ("lag", "expected"),
    [
        (0, ["schedule", "count", "prepare", "execute", "sample", "wait", "update", "step"] * 3),
        (
            2,
            ["schedule", "count", "prepare", "execute", "sample", "step"] * 2
            + ["schedule", "count", "prepare", "execute", "sample", "wait", "update", "step"],
        ),
    ],
)
def test_verbs_come_in_order(lag: int, expected: list[str]) -> None:
    trace = HostTrace()
    llm = LLM(tiny_engine(), SPECULATION, RuntimeConfig(result_lag=lag), trace)
    llm.add_request(PROMPTS[0], greedy(40))
    for _ in range(3):
        llm.step()
    assert [span.name for span in trace.spans] == expected


def test_steps_in_flight_pass_when_the_last_request_is_cancelled() -> None:
    trace = HostTrace()
    llm = LLM(tiny_engine(), SPECULATION, RuntimeConfig(result_lag=3), trace)
    request_id = llm.add_request(PROMPTS[0], greedy(40))
    for _ in range(3):
        llm.step()
    llm.cancel(request_id)
    assert [span.name for span in trace.spans].count("update") == 3
    assert_all_pages_free(llm)
