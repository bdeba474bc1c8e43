"""The scheduler against a device that checks every step, over drawn workloads and in constructed cases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from fake_device import NUM_TOKENS, Arrival, ContractError, FakeDevice, FakeHost, right_answer
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.config import Policy
from sparsespec.runtime.cycles import FixedCycles
from sparsespec.runtime.kv_cache import KvCacheManager
from sparsespec.runtime.request import NO_DRAFTS, DraftShape, Request, RequestSpec
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduled_step import ScheduledStep
from sparsespec.runtime.scheduler import Scheduler, SchedulerLimits
from sparsespec.runtime.verification import Verification

THREE_STEPS = DraftShape(draft_len=3, num_draft_steps=3)


@dataclass(frozen=True)
class Workload:
    arrivals: tuple[Arrival, ...]
    limits: SchedulerLimits
    num_pages: int
    page_size: int
    policy: Policy
    lag: int
    acceptance: float
    seed: int


def make_spec(
    request_id: int,
    prompt: int = 4,
    max_tokens: int = 8,
    drafts: DraftShape = THREE_STEPS,
    stop_token_ids: tuple[int, ...] = (),
    logprobs: int | None = None,
) -> RequestSpec:
    return RequestSpec(
        request_id=request_id,
        prompt_token_ids=(1,) * prompt,
        params=SamplingParams(max_tokens=max_tokens, stop_token_ids=stop_token_ids, logprobs=logprobs),
        seed=request_id,
        stop_token_ids=stop_token_ids,
        max_tokens=max_tokens,
        drafts=drafts,
    )


@st.composite
def specs(draw: st.DrawFn, draft_len: int, count: int) -> list[RequestSpec]:
    stops = st.lists(st.integers(0, NUM_TOKENS - 1), max_size=2, unique=True).map(tuple)
    drafts = st.sampled_from((DraftShape(draft_len, draft_len), DraftShape(draft_len, 0), NO_DRAFTS))
    lengths = st.one_of(st.integers(1, 20), st.integers(1, 200))
    return [
        make_spec(
            request_id,
            prompt=draw(lengths),
            max_tokens=draw(st.integers(1, 20)),
            drafts=draw(drafts),
            stop_token_ids=draw(stops),
            logprobs=draw(st.sampled_from((None, 1))),
        )
        for request_id in range(count)
    ]


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    draft_len = draw(st.one_of(st.integers(0, 4), st.integers(0, 16)))
    page_size = draw(st.sampled_from((1, 4, 16)))
    wanted = draw(specs(draft_len, draw(st.integers(1, 7))))
    most = max(-(-spec.max_kv_len // page_size) for spec in wanted)
    arrivals = tuple(
        Arrival(spec, draw(st.integers(0, 30)), draw(st.one_of(st.none(), st.none(), st.integers(0, 80))))
        for spec in wanted
    )
    batch = draw(st.integers(1, 4))
    return Workload(
        arrivals=arrivals,
        limits=SchedulerLimits(
            max_batch_size=batch,
            max_num_tokens=batch * (draft_len + 1) + draw(st.sampled_from((0, 7, 200))),
            chunk_size=draft_len + 1 + draw(st.sampled_from((0, 1, 5, 60, 200))),
        ),
        num_pages=most + draw(st.sampled_from((0, 0, 3, 20, 100))),
        page_size=page_size,
        policy=draw(st.sampled_from(("unified", "lockstep"))),
        lag=draw(st.integers(0, 3)),
        acceptance=draw(st.sampled_from((0.0, 0.5, 0.9, 1.0))),
        seed=draw(st.integers(0, 1000)),
    )


def make_host(work: Workload) -> FakeHost:
    kv_cache = KvCacheManager(work.num_pages, work.page_size)
    device = FakeDevice(kv_cache, work.acceptance, work.seed)
    return FakeHost(Scheduler(work.limits, kv_cache, FixedCycles(work.policy)), device, work.lag)


def most_steps(work: Workload) -> int:
    """Steps that the requests take one after the other at one prompt row a turn, with every draft rejected."""
    longest_cycle = max(arrival.spec.num_draft_steps for arrival in work.arrivals) + 1
    turns = sum(len(arrival.spec.prompt_token_ids) + arrival.spec.max_tokens for arrival in work.arrivals)
    return 200 + (turns + len(work.arrivals) * (work.lag + 2)) * longest_cycle


def served(work: Workload) -> FakeHost:
    host = make_host(work)
    host.serve(list(work.arrivals), most_steps(work))
    return host


@settings(max_examples=200, deadline=None, derandomize=True)
@given(workloads())
def test_every_request_gets_the_right_answer_and_gives_everything_back(work: Workload) -> None:
    host = served(work)
    for arrival in work.arrivals:
        request = host.requests[arrival.spec.request_id]
        tokens, reason = right_answer(arrival.spec)
        event(f"finished: {request.finish_reason}")
        if request.finish_reason == "cancelled":
            assert arrival.cancel_step is not None
            assert request.output_token_ids == tokens[: len(request.output_token_ids)]
        else:
            assert (request.output_token_ids, request.finish_reason) == (tokens, reason)
        logprobs = [] if arrival.spec.params.logprobs is None else request.output_token_ids
        assert [logprob.token_id for logprob in request.logprobs] == logprobs
    kv_cache = host.scheduler.kv_cache
    kv_cache.check_integrity()
    assert kv_cache.num_free_pages == kv_cache.num_unreserved_pages == work.num_pages


@settings(max_examples=80, deadline=None, derandomize=True)
@given(workloads())
def test_steps_keep_their_limits_and_requests_their_order(work: Workload) -> None:
    host = served(work)
    for step in host.device.steps:
        assert sum(rows.num_rows for rows in step.rows) <= work.limits.max_num_tokens
        assert prefill_rows(step) <= work.limits.chunk_size
        assert len(step.rows) <= work.limits.max_batch_size
        if work.policy == "lockstep":
            assert not (prefill_rows(step) and Phase.DRAFT in phases(step))
    by_arrival = sorted(work.arrivals, key=lambda arrival: arrival.step)
    came = [arrival.spec.request_id for arrival in by_arrival]
    assert host.device.admitted == [request_id for request_id in came if request_id in host.device.admitted]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(workloads())
def test_a_request_once_started_takes_part_in_every_step_until_it_is_done(work: Workload) -> None:
    host = served(work)
    for request_id, traces in host.device.traces.items():
        request = host.requests[request_id]
        prefills = [trace for trace in traces if trace.rows.phase == Phase.PREFILL]
        decodes = traces[len(prefills) :]
        draft_steps = request.spec.num_draft_steps
        cycle = [Phase.DRAFT] * draft_steps + [Phase.VERIFY]
        assert [trace.rows.phase for trace in decodes] == [cycle[i % len(cycle)] for i in range(len(decodes))]
        blocks = [trace.rows for trace in decodes if trace.rows.phase == Phase.VERIFY]
        assert all(rows.num_rows == request.spec.draft_len + 1 for rows in blocks)
        assert all(rows.scored == (request.spec.draft_len > 0) for rows in blocks)
        assert all(later.step == trace.step + 1 for trace, later in pairwise(decodes))
        if decodes:
            assert decodes[0].step - prefills[-1].step - 1 <= draft_steps
        if request.finish_reason in ("stop", "length"):
            done = next(trace.step for trace in traces if trace.num_output >= len(request.output_token_ids))
            assert traces[-1].step <= done + work.lag


@settings(max_examples=80, deadline=None, derandomize=True)
@given(workloads())
def test_verifications_cover_the_output_in_order(work: Workload) -> None:
    """All tokens but the first, which the prompt gives; nothing is read that no step reads."""
    host = served(work)
    for arrival in work.arrivals:
        request, spec = host.requests[arrival.spec.request_id], arrival.spec
        tokens = [index for check in request.verifications for index in outputs_of(check)]
        assert tokens == list(range(1, len(request.output_token_ids)))
        for check in request.verifications:
            assert check.context == len(spec.prompt_token_ids) + check.first_output - 1
            assert check.verify_kv_tokens == check.context + spec.draft_len + 1
            assert check.num_accepted <= check.num_drafts <= spec.draft_len
            assert check.num_tokens <= check.num_accepted + 1
            assert (check.draft_kv_tokens > 0) == (spec.num_draft_steps > 0)
            if spec.num_draft_steps:
                assert check.num_drafts == spec.draft_len
            elif spec.draft_len:
                event(f"all rows used: {check.num_drafts == spec.draft_len}")


def outputs_of(check: Verification) -> range:
    return range(check.first_output, check.first_output + check.num_tokens)


def prefill_rows(step: ScheduledStep) -> int:
    return sum(rows.num_rows for rows in step.rows if rows.phase == Phase.PREFILL)


def phases(step: ScheduledStep) -> list[Phase]:
    return [rows.phase for rows in step.rows]


def roomy(arrivals: list[Arrival], policy: Policy, lag: int = 1) -> Workload:
    """A workload that lacks neither slots nor pages nor rows."""
    rows = sum(arrival.spec.draft_len + 1 for arrival in arrivals)
    limits = SchedulerLimits(len(arrivals), rows + 64, chunk_size=64)
    return Workload(
        tuple(arrivals), limits, num_pages=4000, page_size=4, policy=policy, lag=lag, acceptance=0.7, seed=0
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 16), st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(0, 3))
def test_unified_spreads_verifications_evenly(draft_len: int, joins: list[int], lag: int) -> None:
    """However requests join: each step verifies the mean number of them, rounded down or up."""
    arrivals = [
        Arrival(make_spec(i, prompt=5, max_tokens=400, drafts=DraftShape(draft_len, draft_len)), step)
        for i, step in enumerate(joins)
    ]
    host = make_host(roomy(arrivals, "unified", lag))
    mean = len(joins) / (draft_len + 1)
    started = max(joins) + len(joins) + draft_len + 2
    with pytest.raises(ContractError, match="not done"):
        host.serve(arrivals, max_steps=started + 2 * (draft_len + 1))
    for step in host.device.steps[started:]:
        assert len(step.rows) == len(joins)
        assert abs(phases(step).count(Phase.VERIFY) - mean) < 1


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 8), st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 3))
def test_lockstep_drafts_and_verifies_together(draft_len: int, joins: list[int], lag: int) -> None:
    arrivals = [
        Arrival(make_spec(i, prompt=5 + i, max_tokens=20 + 3 * i, drafts=DraftShape(draft_len, draft_len)), step)
        for i, step in enumerate(joins)
    ]
    host = served(roomy(arrivals, "lockstep", lag))
    for step in host.device.steps:
        assert not (Phase.DRAFT in phases(step) and len(dict.fromkeys(phases(step))) > 1)


@pytest.mark.parametrize("policy", ["unified", "lockstep"])
def test_a_plain_request_decodes_in_every_step_beside_speculating_ones(policy: Policy) -> None:
    plain = make_spec(0, max_tokens=12, drafts=NO_DRAFTS)
    other = make_spec(1, max_tokens=30, drafts=DraftShape(5, 5))
    host = served(roomy([Arrival(plain), Arrival(other)], policy))
    decodes = host.device.traces[0][1:]
    assert [trace.rows.phase for trace in decodes] == [Phase.VERIFY] * 11
    assert not any(trace.rows.scored for trace in host.device.traces[0])


@pytest.mark.parametrize("policy", ["unified", "lockstep"])
@pytest.mark.parametrize(("prompt", "max_tokens"), [(1, 1), (1, 2), (4, 30)])
def test_without_draft_steps_a_request_verifies_in_every_step(policy: Policy, prompt: int, max_tokens: int) -> None:
    """From the step after its prompt on, however others are staggered."""
    others = [Arrival(make_spec(i, max_tokens=60)) for i in (1, 2)]
    spec = make_spec(0, prompt, max_tokens, drafts=DraftShape(5, 0))
    host = served(roomy([*others, Arrival(spec, step=3)], policy, lag=0))
    prefill, *decodes = host.device.traces[0]
    assert [(trace.step, trace.rows.phase) for trace in decodes] == [
        (prefill.step + 1 + index, Phase.VERIFY) for index in range(len(decodes))
    ]
    assert len(decodes) == len(host.requests[0].verifications)
    assert host.requests[0].output_token_ids == right_answer(spec)[0]


@pytest.mark.parametrize("policy", ["unified", "lockstep"])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(draft_len=st.integers(1, 8), joins=st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_requests_without_draft_steps_leave_the_stagger_alone(policy: Policy, draft_len: int, joins: list[int]) -> None:
    drafting = [
        Arrival(make_spec(i, max_tokens=900, drafts=DraftShape(draft_len, draft_len)), step)
        for i, step in enumerate(joins)
    ]
    others = [
        Arrival(make_spec(i, max_tokens=900, drafts=drafts), step=i)
        for i, drafts in enumerate((NO_DRAFTS, DraftShape(draft_len, 0), DraftShape(draft_len, 0)), start=len(joins))
    ]
    assert verify_steps(drafting, len(joins), policy) == verify_steps(drafting + others, len(joins), policy)


def verify_steps(arrivals: list[Arrival], count: int, policy: Policy) -> list[list[int]]:
    """In which of the first 60 steps each of the first `count` requests verifies."""
    host = make_host(roomy(arrivals, policy))
    with pytest.raises(ContractError, match="not done"):
        host.serve(arrivals, max_steps=60)
    return [[trace.step for trace in host.device.traces[i] if trace.rows.phase == Phase.VERIFY] for i in range(count)]


def test_a_late_result_does_not_reach_the_next_request_in_the_slot() -> None:
    first, second = make_spec(0), make_spec(1)
    host = make_host(roomy([Arrival(first)], "unified"))
    scheduler = host.scheduler
    old = scheduler.add(first)
    in_flight = scheduler.schedule()
    results = host.device.run(in_flight)
    scheduler.cancel(old)
    new = scheduler.add(second)
    scheduler.schedule()
    assert scheduler.update(in_flight, results) == []
    assert results[0].tokens
    assert (old.output_token_ids, new.output_token_ids, new.kv_len) == ([], [], 0)


def test_pages_of_a_cancelled_request_stay_taken_until_its_last_step_has_passed() -> None:
    """One request fills the pool, so the next one waits for the steps in flight to retire."""
    kv_cache = KvCacheManager(num_pages=1, page_size=16)
    scheduler = Scheduler(SchedulerLimits(2, 64, 64), kv_cache, FixedCycles("unified"))
    old = scheduler.add(make_spec(0))
    steps = [scheduler.schedule(), scheduler.schedule()]
    scheduler.cancel(old)
    scheduler.add(make_spec(1))
    assert scheduler.schedule().admissions == ()
    scheduler.update(steps[0], {})
    assert scheduler.schedule().admissions == ()
    scheduler.update(steps[1], {})
    assert [admission.spec.request_id for admission in scheduler.schedule().admissions] == [1]


def test_pages_for_rejected_drafts_are_taken_back() -> None:
    """With all drafts rejected and every result read, a request holds pages for its tokens and one more block."""
    arrivals = [Arrival(make_spec(0, prompt=6, max_tokens=30, drafts=DraftShape(7, 7)))]
    host = make_host(replace(roomy(arrivals, "unified", lag=0), page_size=1, acceptance=0.0))
    host.requests[0] = host.scheduler.add(arrivals[0].spec)
    for num_output in (1, 2, 3):
        while len(host.requests[0].output_token_ids) < num_output:
            host.step()
        assert host.scheduler.kv_cache.num_pages_of(0) == 6 + num_output - 1 + 8


def test_the_load_has_the_rows_of_prompts_that_are_not_in_yet() -> None:
    """Up to a chunk in every step until the next look, 16 steps later; a prompt that is still waiting is none."""
    scheduler = Scheduler(SchedulerLimits(2, 64, 20), KvCacheManager(100, 8), FixedCycles("unified"))
    for number, prompt in enumerate((360, 20, 40)):
        scheduler.add(make_spec(number, prompt=prompt))
    rows = []
    for _ in range(20):
        scheduler.schedule()
        rows.append(scheduler.load().prompt_rows)
    assert rows[:4] == [20, 20, 20, (380 - 80) / 16]
    assert rows[16:] == [(380 - 340) / 16, (380 - 360) / 16, 0, 0]


def test_a_large_request_at_the_head_is_not_overtaken() -> None:
    kv_cache = KvCacheManager(num_pages=10, page_size=4)
    scheduler = Scheduler(SchedulerLimits(3, 64, 64), kv_cache, FixedCycles("unified"))
    for spec in (make_spec(0, prompt=8), make_spec(1, prompt=25), make_spec(2, prompt=1, max_tokens=1)):
        scheduler.add(spec)
    assert [admission.spec.request_id for admission in scheduler.schedule().admissions] == [0]


@pytest.mark.parametrize("cancel_step", range(12))
def test_a_request_can_be_cancelled_in_any_phase(cancel_step: int) -> None:
    """Waiting, in each of its chunks, drafts and verifications, and while results are on their way."""
    victim = Arrival(make_spec(0, prompt=20, max_tokens=40), 0, cancel_step)
    other = Arrival(make_spec(1, prompt=3), 1)
    limits = SchedulerLimits(max_batch_size=1, max_num_tokens=8, chunk_size=8)
    work = Workload((victim, other), limits, 40, 2, "unified", lag=2, acceptance=0.5, seed=1)
    host = served(work)
    assert host.requests[0].finish_reason == "cancelled"
    assert host.requests[1].output_token_ids == right_answer(other.spec)[0]
    later = [trace for trace in host.device.traces.get(0, []) if trace.step >= cancel_step]
    assert not later


def test_ending_a_request_leaves_no_trace_in_the_counts() -> None:
    scheduler = Scheduler(SchedulerLimits(1, 8, 8), KvCacheManager(8, 8), FixedCycles("unified"))
    running, waiting = scheduler.add(make_spec(0)), scheduler.add(make_spec(1))
    scheduler.schedule()
    assert scheduler.has_requests
    scheduler.cancel(waiting)
    scheduler.stop(running, 0, "END")
    assert not scheduler.has_requests
    assert ended(running) == ("stop", "END")
    assert ended(waiting) == ("cancelled", None)


def ended(request: Request) -> tuple[object, object]:
    return request.finish_reason, request.stop_reason


def test_who_waits_is_let_in_by_priority_and_then_by_arrival() -> None:
    limits = SchedulerLimits(max_batch_size=1, max_num_tokens=64, chunk_size=64)
    scheduler = Scheduler(limits, KvCacheManager(num_pages=64, page_size=4), FixedCycles("unified"))
    waiting = [replace(make_spec(number), priority=priority) for number, priority in enumerate((0, 2, 1, -1, 1))]
    requests = [scheduler.add(spec) for spec in waiting]
    order = []
    while scheduler.has_requests:
        (admission,) = scheduler.schedule().admissions
        order.append(admission.spec.request_id)
        scheduler.cancel(requests[order[-1]])
    assert order == [3, 0, 2, 4, 1]
