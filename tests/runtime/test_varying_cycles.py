"""Cycles whose drafts change in number, in what they read and in when they are verified: only the speed may tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from fake_device import Arrival, FakeDevice, FakeHost, right_answer
from random_cycles import RandomCycles
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.config import GraphsName, RuntimeConfig, SpeculationConfig
from sparsespec.runtime.cycles import FirstCycle
from sparsespec.runtime.device.graph_executor import GraphExecutor
from sparsespec.runtime.kv_cache import KvCacheManager
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.request import DraftShape, Request, RequestSpec
from sparsespec.runtime.results import SlotResult
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduled_step import ScheduledStep
from sparsespec.runtime.scheduler import Scheduler, SchedulerLimits
from tiny_llm import (
    DraftCounts,
    assert_all_pages_free,
    first_answers,
    greedy,
    random_prompts,
    tiny_engine,
    ways_to_draft,
)

BUDGET = 16
BUDGETS = (BUDGET, 6, 30)  # of fixed shapes, whose budgets change while requests run
SPECULATION = SpeculationConfig(k=6, ratio=0.1, min_budget=BUDGET, max_lookups=8)
RULES = ways_to_draft(SPECULATION) | {"rows": replace(SPECULATION, ranking="accepted", moving_from="last")}
PROMPTS = random_prompts((37, 80, 1, 61, 90, 30))
PLAIN = SpeculationConfig(drafter="none")


@pytest.fixture(scope="module")
def plain() -> list[tuple[int, ...]]:
    return first_answers(LLM(tiny_engine(), PLAIN).generate(PROMPTS, greedy(40)))


def check_lossless(rule: str, config: RuntimeConfig, plain: list[tuple[int, ...]], seed: int) -> None:
    cycles = RandomCycles(seed, tuple(range(len(BUDGETS))))
    llm = LLM(tiny_engine(), RULES[rule], config, cycles=cycles)
    if isinstance(llm.executor, GraphExecutor):
        llm.executor.budgets.offer([replace(RULES[rule], min_budget=budget) for budget in BUDGETS])
    outputs = llm.generate(PROMPTS, greedy(40))
    assert first_answers(outputs) == plain
    counts = DraftCounts.of(outputs)
    assert counts.longest_context > BUDGET
    assert counts.accepted > 0
    assert counts.rejected > 0
    assert sorted(dict.fromkeys(cycles.drawn)) == list(range(SPECULATION.k + 1))
    assert_all_pages_free(llm)


@pytest.mark.parametrize("rule", RULES)
def test_greedy_tokens_are_plain_decodings(rule: str, plain: list[tuple[int, ...]]) -> None:
    check_lossless(rule, RuntimeConfig(chunk_size=32, cuda_graphs="off"), plain, seed=1)


@pytest.mark.parametrize("rule", ["default", "exact", "window", "ngram"])
def test_greedy_tokens_are_plain_decodings_in_fixed_shapes(rule: str, plain: list[tuple[int, ...]]) -> None:
    check_lossless(rule, RuntimeConfig(chunk_size=32, cuda_graphs="on"), plain, seed=2)


@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize("graphs", ["on", "off"])
def test_late_results(graphs: GraphsName, lag: int, plain: list[tuple[int, ...]]) -> None:
    check_lossless("default", RuntimeConfig(cuda_graphs=graphs, result_lag=lag), plain, seed=3)


@pytest.mark.parametrize("params", [greedy(40), SamplingParams(max_tokens=40, temperature=0.8, seed=3)])
def test_fixed_shapes_give_the_tokens_of_varying_shapes(params: SamplingParams) -> None:
    """The same cycles over both: same drafts, same scores, same tokens. One request is told not to speculate."""
    answers = []
    for graphs in ("on", "off"):
        llm = LLM(tiny_engine(), SPECULATION, RuntimeConfig(cuda_graphs=graphs), cycles=RandomCycles(4))  # type: ignore[arg-type]
        ids = [llm.add_request(prompt, replace(params, speculate=i != 2)) for i, prompt in enumerate(PROMPTS)]
        for _ in llm.run(ids):
            pass
        outputs = [llm.take_output(each) for each in ids]
        answers.append((first_answers(outputs), DraftCounts.of(outputs)))
    assert answers[0] == answers[1]


def test_drafts_after_a_block_of_any_length_read_everything_they_may() -> None:
    """With room for the whole context the draft model is the model, so whatever is drafted is accepted."""
    speculation = replace(SPECULATION, min_budget=256, recent_share=1.0, moving_share=0.0, max_lookups=0)
    for graphs in ("on", "off"):
        llm = LLM(tiny_engine(), speculation, RuntimeConfig(cuda_graphs=graphs), cycles=RandomCycles(5))  # type: ignore[arg-type]
        checks = [check for out in llm.generate(PROMPTS, greedy(40)) for check in out.outputs[0].verifications]
        assert sum(check.num_drafts for check in checks) == sum(check.num_accepted for check in checks) > 0


@st.composite
def specs(draw: st.DrawFn, draft_len: int) -> list[RequestSpec]:
    shapes = (DraftShape(draft_len, draft_len), DraftShape(draft_len, 0), DraftShape(0, 0))
    return [
        RequestSpec(
            request_id=number,
            prompt_token_ids=(1,) * draw(st.integers(1, 40)),
            params=SamplingParams(),
            seed=number,
            stop_token_ids=draw(st.sampled_from(((), (3,), (5, 7)))),
            max_tokens=draw(st.integers(1, 30)),
            drafts=draw(st.sampled_from(shapes)),
        )
        for number in range(draw(st.integers(1, 7)))
    ]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_any_schedule_is_one_that_a_device_can_run(data: st.DataObject) -> None:
    """Pages, bounds, blocks and what is scored are checked by the device in every step."""
    draft_len, batch = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    wanted = data.draw(specs(draft_len))
    page_size = data.draw(st.sampled_from((1, 4, 16)))
    most = max(-(-spec.max_kv_len // page_size) for spec in wanted)
    kv_cache = KvCacheManager(most + data.draw(st.sampled_from((0, 0, 5, 40))), page_size)
    limits = SchedulerLimits(batch, batch * (draft_len + 1) + data.draw(st.sampled_from((0, 9))), draft_len + 1)
    device = FakeDevice(kv_cache, data.draw(st.sampled_from((0.0, 0.5, 1.0))), seed=data.draw(st.integers(0, 99)))
    cycles = RandomCycles(data.draw(st.integers(0, 999)))
    host = FakeHost(Scheduler(limits, kv_cache, cycles), device, lag=data.draw(st.integers(0, 3)))
    host.serve([Arrival(spec, data.draw(st.integers(0, 20))) for spec in wanted], max_steps=20_000)
    for spec in wanted:
        request = host.requests[spec.request_id]
        assert (request.output_token_ids, request.finish_reason) == right_answer(spec)
        check_reads(request)
    assert kv_cache.num_free_pages == kv_cache.num_pages
    event(f"lengths: {len(dict.fromkeys(cycles.drawn))}")


def check_reads(request: Request) -> None:
    """Each block counts its own rows, and its own drafts where steps drafted them."""
    drafts = request.spec.num_draft_steps > 0
    for check in request.verifications:
        num_rows = check.verify_kv_tokens - check.context
        assert 1 <= num_rows <= request.spec.draft_len + 1
        assert check.num_drafts == num_rows - 1 if drafts else check.num_drafts < num_rows
        assert (check.draft_kv_tokens > 0) == (drafts and num_rows > 1)


def test_a_verification_counts_the_rows_of_its_own_cycle() -> None:
    """Also where its result comes after the next cycle's number was chosen."""
    request = Request(RequestSpec(0, (1,) * 10, SamplingParams(), 0, (), 30, DraftShape(4, 4)))
    request.schedule_prefill(10)
    request.change_drafts(2)
    request.receive(SlotResult(Phase.PREFILL, (50,), 0, 0, 10, 8, 3, ()))
    request.schedule_draft()
    request.schedule_draft()
    assert request.next_phase == Phase.VERIFY
    request.schedule_verify()
    request.change_drafts(0)
    assert request.next_phase == Phase.VERIFY
    request.schedule_verify()
    request.change_drafts(4)
    assert (request.next_phase, request.kv_len_upper, request.write_bound) == (Phase.DRAFT, 10 + 3 + 1, 10 + 3 + 1 + 5)
    request.receive(SlotResult(Phase.VERIFY, (51, 52), 2, 1, 12, 9, 3, ()))
    request.receive(SlotResult(Phase.VERIFY, (53,), 0, 0, 13, 10, 3, ()))
    first, second = request.verifications
    assert (first.draft_kv_tokens, first.verify_kv_tokens) == (2 * 3 + 3 + 4, 10 + 3)
    assert (second.draft_kv_tokens, second.verify_kv_tokens) == (0, 12 + 1)


def test_a_plain_step_is_scored_only_where_drafts_follow() -> None:
    """And so is the end of a prompt."""
    kv_cache = KvCacheManager(100, 4)
    cycles = ListedCycles([0, 0, 2, 0, 0])
    scheduler = Scheduler(SchedulerLimits(1, 64, 64), kv_cache, cycles)
    scheduler.add(RequestSpec(0, (1,) * 6, SamplingParams(), 0, (), 30, DraftShape(3, 3)))
    steps = [scheduler.schedule() for _ in range(7)]
    assert [part(step) for step in steps] == [
        (Phase.PREFILL, 6, False),
        (Phase.VERIFY, 1, False),
        (Phase.VERIFY, 1, True),
        (Phase.DRAFT, 1, False),
        (Phase.DRAFT, 1, False),
        (Phase.VERIFY, 3, False),
        (Phase.VERIFY, 1, False),
    ]


def part(step: ScheduledStep) -> tuple[Phase, int, bool]:
    (rows,) = step.rows
    return rows.phase, rows.num_rows, rows.scored


class ListedCycles(RandomCycles):
    """Of given numbers, without delay."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__(0)
        self._numbers = numbers

    def first(self, request: Request, others: Iterable[Request], step: int) -> FirstCycle:
        """See Cycles."""
        return FirstCycle(0, self._numbers.pop(0))

    def next_drafts(self, request: Request, step: int) -> int:
        """See Cycles."""
        return self._numbers.pop(0)
