"""KV pages that run short: whole requests leave and come back, everybody finishes, and nothing is lost on the way."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from fake_device import NUM_TOKENS, Arrival, ContractError, FakeDevice, FakeHost, answer_token, right_answer
from random_cycles import RandomCycles
from sparsespec.runtime.config import Policy
from sparsespec.runtime.cycles import FixedCycles
from sparsespec.runtime.kv_cache import KvCacheManager
from sparsespec.runtime.request import NO_DRAFTS, DraftShape, Request, RequestSpec
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduler import Scheduler, SchedulerLimits


@dataclass(frozen=True)
class Workload:
    """Requests, and a pool that is too small for them."""

    arrivals: tuple[Arrival, ...]
    limits: SchedulerLimits
    num_pages: int
    num_host_pages: int
    page_size: int
    policy: Policy
    lag: int
    acceptance: float
    random_cycles: bool


def make_spec(
    request_id: int, prompt: int, max_tokens: int, drafts: DraftShape, stops: tuple[int, ...] = ()
) -> RequestSpec:
    params = SamplingParams(max_tokens=max_tokens, stop_token_ids=stops)
    return RequestSpec(request_id, (1,) * prompt, params, request_id, stops, max_tokens, drafts)


@st.composite
def arrivals(draw: st.DrawFn, draft_len: int) -> tuple[Arrival, ...]:
    stops = st.lists(st.integers(0, NUM_TOKENS - 1), max_size=2, unique=True).map(tuple)
    shapes = st.sampled_from((DraftShape(draft_len, draft_len), DraftShape(draft_len, 0), NO_DRAFTS))
    cancel = st.one_of(st.none(), st.none(), st.none(), st.integers(0, 120))
    return tuple(
        Arrival(
            make_spec(i, draw(st.integers(1, 60)), draw(st.integers(1, 60)), draw(shapes), draw(stops)),
            draw(st.integers(0, 20)),
            draw(cancel),
        )
        for i in range(draw(st.integers(2, 8)))
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    draft_len, batch = draw(st.integers(0, 6)), draw(st.integers(2, 8))
    page_size = draw(st.sampled_from((1, 4, 16)))
    wanted = draw(arrivals(draft_len))
    most = max(-(-arrival.spec.max_kv_len // page_size) for arrival in wanted)
    return Workload(
        arrivals=wanted,
        limits=SchedulerLimits(
            max_batch_size=batch,
            max_num_tokens=batch * (draft_len + 1) + draw(st.sampled_from((0, 7, 200))),
            chunk_size=draft_len + 1 + draw(st.sampled_from((0, 5, 200))),
        ),
        num_pages=most + draw(st.sampled_from((0, 0, 1, 5, 30))),
        num_host_pages=draw(st.sampled_from((1, most, 2 * most, 8 * most, 8 * most))),
        page_size=page_size,
        policy=draw(st.sampled_from(("unified", "lockstep"))),
        lag=draw(st.integers(0, 4)),
        acceptance=draw(st.sampled_from((0.0, 0.5, 1.0))),
        random_cycles=draw(st.sampled_from((False, False, True))),
    )


def make_host(work: Workload) -> FakeHost:
    kv_cache = KvCacheManager(work.num_pages, work.page_size, work.num_host_pages)
    device = FakeDevice(kv_cache, work.acceptance, seed=0)
    cycles = RandomCycles(1) if work.random_cycles else FixedCycles(work.policy)
    return FakeHost(Scheduler(work.limits, kv_cache, cycles), device, work.lag)


def most_steps(work: Workload) -> int:
    """Steps that the requests take one after the other, and as many again for every page that one may come to lack."""
    longest_cycle = max(arrival.spec.num_draft_steps for arrival in work.arrivals) + 1
    turns = sum(len(arrival.spec.prompt_token_ids) + arrival.spec.max_tokens for arrival in work.arrivals)
    pages = sum(-(-arrival.spec.max_kv_len // work.page_size) for arrival in work.arrivals)
    return 200 + turns * longest_cycle + pages * (3 * (work.lag + 2) + longest_cycle)


def served(work: Workload) -> FakeHost:
    host = make_host(work)
    host.serve(list(work.arrivals), most_steps(work))
    return host


@settings(max_examples=400, deadline=None, derandomize=True)
@given(workloads())
def test_every_request_gets_the_right_answer_and_gives_everything_back(work: Workload) -> None:
    """The device checks every page that is written, read, granted or copied; the host the owners after each step."""
    host = served(work)
    event(f"offloads: {min(3, len(host.device.offloaded))}")
    for arrival in work.arrivals:
        request = host.requests[arrival.spec.request_id]
        tokens, reason = right_answer(arrival.spec)
        if request.finish_reason == "cancelled":
            assert arrival.cancel_step is not None
            assert request.output_token_ids == tokens[: len(request.output_token_ids)]
        else:
            assert (request.output_token_ids, request.finish_reason) == (tokens, reason)
    kv_cache = host.scheduler.kv_cache
    assert kv_cache.num_free_pages == kv_cache.num_unreserved_pages == work.num_pages
    assert kv_cache.num_unreserved_host_pages == work.num_host_pages
    assert kv_cache.num_used_host_pages == 0


@settings(max_examples=150, deadline=None, derandomize=True)
@given(workloads())
def test_who_left_first_comes_back_first_and_nobody_is_admitted_meanwhile(work: Workload) -> None:
    host = served(work)
    cancelled = [each for each, request in host.requests.items() if request.finish_reason == "cancelled"]
    away: list[int] = []
    offloaded, restored = iter(host.device.offloaded), iter(host.device.restored)
    for step in host.device.steps:
        away += [next(offloaded) for _ in step.offloads]
        for _ in step.restores:
            back = next(restored)
            while away[0] != back:
                assert away[0] in cancelled
                away.pop(0)
            away.pop(0)
        assert not step.admissions or all(each in cancelled for each in away)


def crowd(count: int, prompt: int, max_tokens: int, stops: tuple[int, ...] = ()) -> tuple[Arrival, ...]:
    """Plain requests that come at once."""
    return tuple(Arrival(make_spec(i, prompt, max_tokens, NO_DRAFTS, stops)) for i in range(count))


def tight(arrived: tuple[Arrival, ...], num_pages: int, num_host_pages: int) -> Workload:
    """Pages of one token, results at once."""
    limits = SchedulerLimits(len(arrived), 100, 100)
    return Workload(arrived, limits, num_pages, num_host_pages, 1, "unified", 0, 1.0, random_cycles=False)


@pytest.mark.parametrize(("num_host_pages", "at_once"), [(0, 1), (26, 2), (200, 5)])
def test_more_are_admitted_than_the_pool_has_room_for_at_worst(num_host_pages: int, at_once: int) -> None:
    """Worst cases of 26 pages each in a pool of 40, and 7 that each wants; a guest's worst case is host memory's."""
    host = make_host(tight(crowd(6, prompt=5, max_tokens=21), num_pages=40, num_host_pages=num_host_pages))
    with pytest.raises(ContractError, match="not done"):
        host.serve(list(crowd(6, prompt=5, max_tokens=21)), max_steps=2)
    assert len(host.device.admitted) == at_once


def test_who_was_admitted_last_leaves_first() -> None:
    """Three requests of up to 31 pages in a pool of 45; the first, whose worst case is reserved there, stays."""
    host = served(tight(crowd(3, prompt=5, max_tokens=26), num_pages=45, num_host_pages=100))
    assert host.device.offloaded[:2] == [2, 1]
    assert 0 not in host.device.offloaded
    steps_of_first = [trace.step for trace in host.device.traces[0]]
    assert steps_of_first == list(range(len(steps_of_first)))


def test_answers_that_end_early_move_nobody() -> None:
    """Worst cases for which the pool has no room, and answers that need little of it: the first token stops them."""
    first_tokens = tuple(dict.fromkeys(answer_token(seed, 0) for seed in range(6)))
    arrived = crowd(6, prompt=5, max_tokens=40, stops=first_tokens)
    host = served(tight(arrived, num_pages=50, num_host_pages=300))
    assert host.device.offloaded == []
    assert len(host.device.steps) == 1


@pytest.mark.parametrize("policy", ["unified", "lockstep"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(draft_len=st.integers(1, 6), there=st.integers(0, 6), back=st.integers(0, 6))
def test_who_is_back_finds_a_place_in_the_stagger(policy: Policy, draft_len: int, there: int, back: int) -> None:
    """Wherever it was in its cycle: verifications coincide in lockstep, and do not otherwise."""
    drafts = DraftShape(draft_len, draft_len)
    requests = [Request(make_spec(i, 4, 90, drafts)) for i in range(2)]
    for request, drafted in zip(requests, (there, back), strict=True):
        request.schedule_prefill(4)
        for _ in range(min(drafted, draft_len)):
            request.schedule_draft()
    other, returning = requests
    returning.delay_start(FixedCycles(policy).rejoin(returning, requests, step=7))
    apart = returning.next_verify_step(7) - other.next_verify_step(7)
    assert (apart % (draft_len + 1) == 0) == (policy == "lockstep")
