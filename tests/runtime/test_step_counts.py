"""What a step reads and writes of the KV cache: by hand, and against what verifications say they have read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparsespec.plugins.phase import Phase
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.cycles import FixedCycles
from sparsespec.runtime.kv_cache import KvCacheManager
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.request import DraftShape, RequestSpec
from sparsespec.runtime.results import SlotResult
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduled_step import ScheduledStep
from sparsespec.runtime.scheduler import Scheduler, SchedulerLimits
from sparsespec.runtime.step_counts import StepCounter, StepCounts
from sparsespec.runtime.tracing import HostTrace
from tiny_llm import greedy, random_prompts, tiny_engine

BYTES = 1000  # that a token keeps
SPECULATION = SpeculationConfig(k=2, min_budget=10, ratio=0.05)
TINY_SPECULATION = SpeculationConfig(k=4, min_budget=16)
PROMPTS = random_prompts((40, 22, 61))


def make_spec(request_id: int, prompt: int, max_tokens: int = 50) -> RequestSpec:
    return RequestSpec(
        request_id, (1,) * prompt, SamplingParams(max_tokens=max_tokens), 0, (), max_tokens, DraftShape(2, 2)
    )


class Desk:
    """A scheduler, and a counter of its steps."""

    def __init__(self, *specs: RequestSpec, speculation: SpeculationConfig = SPECULATION) -> None:
        self.scheduler = Scheduler(SchedulerLimits(2, 64, 40), KvCacheManager(40, 8), FixedCycles("lockstep"))
        self.counter = StepCounter(self.scheduler, speculation, BYTES)
        for spec in specs:
            self.scheduler.add(spec)

    def step(self) -> tuple[ScheduledStep, StepCounts]:
        step = self.scheduler.schedule()
        return step, self.counter.count(step)


def answer(step: ScheduledStep, kv_len: int) -> dict[int, SlotResult]:
    """Of the only request."""
    row = step.rows[0]
    return {row.slot: SlotResult(row.phase, (5,), 2, 0, kv_len, 0, 0, ())}


def test_a_request_from_its_prompt_to_its_second_cycle() -> None:
    """60 prompt tokens in two chunks, results read at once; then two drafts and a verification of three rows."""
    desk = Desk(make_spec(0, prompt=60))
    chunk, counts = desk.step()
    assert (counts.prefill_rows, counts.kv_bytes_read, counts.kv_bytes_written) == (40, 40 * BYTES, 40 * BYTES)
    desk.scheduler.update(chunk, {})
    last, counts = desk.step()
    assert (counts.prefill_rows, counts.kv_bytes_read, counts.kv_bytes_written) == (20, 60 * BYTES, 20 * BYTES)
    desk.scheduler.update(last, answer(last, 60))
    reads = []
    for _ in range(3):
        step, counts = desk.step()
        reads.append((step.rows[0].phase, counts.kv_bytes_read // BYTES, counts.kv_bytes_written // BYTES))
    # A budget of 10, the three rows of the last block, and the drafts so far.
    assert reads == [(Phase.DRAFT, 14, 1), (Phase.DRAFT, 15, 1), (Phase.VERIFY, 63, 3)]
    # Unread, the verification may have added three tokens.
    assert desk.step()[1].kv_bytes_read == 14 * BYTES
    assert desk.step()[1].kv_bytes_read == 15 * BYTES
    assert desk.step()[1].kv_bytes_read == 66 * BYTES


def test_a_short_context_is_read_once() -> None:
    desk = Desk(make_spec(0, prompt=5))
    prompt, _ = desk.step()
    desk.scheduler.update(prompt, answer(prompt, 5))
    assert [desk.step()[1].kv_bytes_read // BYTES for _ in range(3)] == [6, 7, 8]


def test_an_oracle_reads_everything_to_choose() -> None:
    desk = Desk(make_spec(0, prompt=30), speculation=replace(SPECULATION, drafter="oracle"))
    prompt, _ = desk.step()
    desk.scheduler.update(prompt, answer(prompt, 30))
    assert [desk.step()[1].kv_bytes_read // BYTES for _ in range(3)] == [31, 32, 33]


def test_no_more_is_read_than_where_the_device_stops() -> None:
    """Three tokens are asked for, so lengths end at 62, whatever is in flight."""
    desk = Desk(make_spec(0, prompt=60, max_tokens=3))
    for step, _ in (desk.step(), desk.step()):
        desk.scheduler.update(step, answer(step, 60) if step.index else {})
    assert [desk.step()[1].kv_bytes_read // BYTES for _ in range(6)][2::3] == [63, 65]


def test_requests_and_pages_are_counted() -> None:
    desk = Desk(*(make_spec(number, prompt=10) for number in range(3)))
    _, counts = desk.step()
    assert (counts.slots, counts.running, counts.waiting) == (2, 2, 1)
    held = sum(desk.scheduler.kv_cache.num_pages_of(number) for number in range(2))
    assert (counts.pages_used, counts.pages_free) == (held, 40 - held)
    assert held > 0


def traced_reads(speculation: SpeculationConfig, lag: int) -> tuple[int, int, LLM]:
    """Bytes that steps without prompts read by the trace, and by the verifications of the same run."""
    trace = HostTrace()
    llm = LLM(tiny_engine(), speculation, RuntimeConfig(result_lag=lag), trace)
    blocks = [block for each in llm.generate(PROMPTS, greedy(30)) for block in each.outputs[0].verifications]
    counted = sum(each.step.kv_bytes_read for each in trace.counts if each.step.prefill_rows == 0)
    read = sum(block.draft_kv_tokens + block.verify_kv_tokens for block in blocks)
    return counted, read * llm.kv_bytes_per_token, llm


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("drafter", ["pillar", "window", "none"])
def test_the_bound_holds_over_a_run(drafter: str, lag: int) -> None:
    counted, read, llm = traced_reads(replace(TINY_SPECULATION, drafter=drafter), lag)  # type: ignore[arg-type]
    assert read <= counted
    if drafter == "none" and lag == 0:
        assert counted == read  # every length is known
    assert llm.kv_bytes_per_token > 0


def test_verifications_that_know_their_length_are_exact() -> None:
    """In lockstep steps verify or draft, and at a lag of 1 every block's results come before the next block."""
    trace = HostTrace()
    llm = LLM(tiny_engine(), TINY_SPECULATION, RuntimeConfig(result_lag=1, policy="lockstep"), trace)
    blocks = [block for each in llm.generate(PROMPTS, greedy(30)) for block in each.outputs[0].verifications]
    counted = [each.step for each in trace.counts if each.step.verify_rows]
    assert all(step.draft_rows == step.prefill_rows == 0 for step in counted)
    read = sum(block.verify_kv_tokens for block in blocks) * llm.kv_bytes_per_token
    assert sum(step.kv_bytes_read for step in counted) == read


def test_written_bytes_are_those_of_the_rows() -> None:
    trace = HostTrace()
    llm = LLM(tiny_engine(), TINY_SPECULATION, recorder=trace)
    llm.generate(PROMPTS, greedy(20))
    for each in trace.counts:
        rows = each.step.prefill_rows + each.step.draft_rows + each.step.verify_rows
        assert each.step.kv_bytes_written == rows * llm.kv_bytes_per_token
