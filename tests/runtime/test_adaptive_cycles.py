"""Cycles by a chooser, scheduled for a device that checks every step."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chooser_cases import GivenLoad, no_time, options
from fake_device import Arrival, FakeDevice, FakeHost, right_answer
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.adaptive_cycles import AdaptiveCycles, CommonEnds, Moment, SpreadEnds
from sparsespec.runtime.chooser import Chooser, Options
from sparsespec.runtime.config import Policy
from sparsespec.runtime.cost_model import CostModel, DraftReads, Kind, StepLatencies, Way
from sparsespec.runtime.cycles import Load
from sparsespec.runtime.kv_cache import KvCacheManager
from sparsespec.runtime.request import NO_DRAFTS, DraftShape, RequestSpec
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduled_step import ScheduledStep
from sparsespec.runtime.scheduler import Scheduler, SchedulerLimits

MOST = 8
# Reading is all that costs, so that speculation pays at any length if drafts agree.
READING = CostModel(((1, 1e-6), (1000, 1e-5)), 10**6, 1e9, 1e9, 1e9)


def spec(request_id: int, prompt: int = 60, max_tokens: int = 300, drafts: int = MOST) -> RequestSpec:
    shape = DraftShape(drafts, drafts) if drafts else NO_DRAFTS
    return RequestSpec(request_id, (1,) * prompt, SamplingParams(), request_id, (), max_tokens, shape)


def cycles(policy: Policy, max_kv_share: float = 1.0) -> AdaptiveCycles:
    reads = DraftReads(ratio=0.02, min_budget=1)
    chosen = Options(MOST, (policy,), (reads,), max_kv_share)
    return AdaptiveCycles(Chooser(READING, chosen), no_time)


def host_of(acceptance: float, own: AdaptiveCycles, lag: int = 1, batch: int = 24) -> FakeHost:
    kv_cache = KvCacheManager(20_000, 4)
    limits = SchedulerLimits(batch, 4000, 512)
    return FakeHost(Scheduler(limits, kv_cache, own), FakeDevice(kv_cache, acceptance, seed=1), lag)


def served(policy: Policy, acceptance: float, arrivals: list[Arrival]) -> tuple[FakeHost, AdaptiveCycles]:
    own = cycles(policy)
    host = host_of(acceptance, own)
    host.serve(arrivals, max_steps=4000)
    for arrival in arrivals:
        request = host.requests[arrival.spec.request_id]
        assert (request.output_token_ids, request.finish_reason) == right_answer(arrival.spec)
    return host, own


def some(count: int) -> list[Arrival]:
    return [Arrival(spec(number), step=3 * number) for number in range(count)]


def sizes(host: FakeHost, steps: slice) -> list[int]:
    """Drafts of the cycles that were verified in these steps."""
    rows = [rows for step in host.device.steps[steps] for rows in step.rows]
    return [each.num_rows - 1 for each in rows if each.phase == Phase.VERIFY]


def phases(step: ScheduledStep) -> list[Phase]:
    return [rows.phase for rows in step.rows]


@pytest.mark.parametrize("policy", ["unified", "lockstep"])
def test_what_agrees_drafts_much_and_what_does_not_hardly_ever(policy: Policy) -> None:
    good, learned = served(policy, 1.0, some(6))
    assert learned.agreement > 0.95
    late = sizes(good, slice(len(good.device.steps) // 2, None))
    assert sum(number >= MOST - 1 for number in late) > 0.8 * len(late)
    bad, learned = served(policy, 0.0, some(6))
    assert learned.agreement < 0.2
    late = sizes(bad, slice(len(bad.device.steps) // 2, None))
    assert 0 < sum(number > 0 for number in late) < 0.1 * len(late)  # probes, and nothing else


def test_requests_adapt_each_for_itself() -> None:
    """In one batch; of the first one's verifications the host is told that nothing was accepted."""
    own = cycles("unified")
    host = host_of(1.0, own)
    for number in range(6):
        host.requests[number] = host.scheduler.add(spec(number))
    for _ in range(150):
        host.step()
        checks = [replace(check, num_accepted=0) for check in host.requests[0].verifications]
        host.requests[0]._verified = [astuple(check) for check in checks]
    counts = [[v.num_drafts for v in host.requests[number].verifications][-5:] for number in (0, 1)]
    assert sum(counts[0]) < 0.5 * sum(counts[1])


def test_unified_verifies_an_even_share_in_every_step() -> None:
    """However they come: no step verifies much more than the mean."""
    own = cycles("unified")
    host = host_of(1.0, own)
    for number in range(24):
        host.requests[number] = host.scheduler.add(spec(number, prompt=10, max_tokens=2000))
    for _ in range(150):
        host.step()
    counts = [phases(step).count(Phase.VERIFY) for step in host.device.steps[60:]]
    assert max(counts) <= 2 * 24 / (MOST + 1)
    assert min(counts) >= 1


def test_lockstep_drafts_and_verifies_together() -> None:
    """Also those that join while others draft, and whoever does not draft at all."""
    arrivals = [Arrival(spec(number, prompt=5 + 9 * number), step=7 * number) for number in range(6)]
    host, _ = served("lockstep", 0.9, arrivals)
    assert any(Phase.DRAFT in phases(step) for step in host.device.steps)
    for step in host.device.steps:
        assert len(dict.fromkeys(phases(step))) == 1 or Phase.DRAFT not in phases(step)


@pytest.mark.parametrize("policy", ["unified", "lockstep"])
def test_a_request_that_may_not_draft_never_does(policy: Policy) -> None:
    host, _ = served(policy, 1.0, [*some(3), Arrival(spec(3, drafts=0), step=2)])
    assert not any(trace.rows.phase == Phase.DRAFT or trace.rows.scored for trace in host.device.traces[3])


def test_when_pages_run_short_nothing_is_drafted() -> None:
    own, speculates = cycles("unified", max_kv_share=0.5), []
    for step in range(120):
        own.begin_step(step, GivenLoad(Load(8, 5000.0, 0.6 if 40 <= step < 80 else 0.4)))
        speculates.append(own.chooser.choice.speculates)
    assert (speculates[30], speculates[70], speculates[110]) == (True, False, True)


def test_spread_ends_fill_the_emptiest_step() -> None:
    ends = SpreadEnds()
    assert [ends.place(10, 4, least=3, most=5) for _ in range(6)] == [4, 3, 5, 4, 3, 5]
    assert ends.place(11, 4, least=3, most=5) == 5  # step 17 has nobody
    assert ends.place(11, 0, least=0, most=0) == 0


def test_common_ends_take_whoever_comes_later_along() -> None:
    """Cycles that begin after steps 10, 10, 12 and 15 end in step 16, where the next one is decided on."""
    ends = CommonEnds()
    wanted = ((10, 5), (10, 8), (12, 0), (15, 7), (16, 3), (17, 4))
    assert [ends.place(step, number) for step, number in wanted] == [5, 5, 3, 0, 3, 2]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    policy=st.sampled_from(("unified", "lockstep")),
    joins=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=7),
    acceptance=st.sampled_from((0.0, 0.5, 0.9, 1.0)),
    lag=st.integers(0, 3),
)
def test_any_schedule_is_one_that_a_device_can_run(
    policy: Policy, joins: list[tuple[int, int, int]], acceptance: float, lag: int
) -> None:
    own = cycles(policy)
    host = host_of(acceptance, own, lag, batch=3)
    arrivals = [Arrival(spec(i, prompt, tokens), step) for i, (step, prompt, tokens) in enumerate(joins)]
    host.serve(arrivals, max_steps=4000)
    for arrival in arrivals:
        assert host.requests[arrival.spec.request_id].output_token_ids == right_answer(arrival.spec)[0]
    assert host.scheduler.kv_cache.num_free_pages == host.scheduler.kv_cache.num_pages


def test_what_is_known_of_a_request_goes_with_it() -> None:
    _, own = served("unified", 0.8, some(4))
    assert (own._known, own._drafting) == ({}, {})


def test_a_chooser_without_requests_drafts_nothing() -> None:
    own = AdaptiveCycles(Chooser(READING, options()), no_time)
    own.begin_step(0, GivenLoad(Load(0, 0.0, 0.0)))
    assert not own.chooser.choice.speculates


# Of 24 requests: steps of more rows than unified cycles have are dear, or those of more than drafts alone.
READS = DraftReads(0.02, 1)
TURNING = Options(MOST, ("unified", "lockstep"), (READS,), 1.0)
APART = CostModel(((1, 1e-6), (30, 1e-6), (50, 2e-6), (1000, 1.0)), 10**6, 1e12, 1e12, 1e12)
TOGETHER = CostModel(((1, 1e-6), (24, 1e-6), (40, 1e-3), (1000, 1.1e-3)), 10**6, 1e12, 1e12, 1e12)


def test_policies_change_while_requests_run() -> None:
    """Cycles at work end as they began, then verifications fall together, and spread again within two cycles."""
    chooser = Chooser(APART, TURNING)
    host = host_of(1.0, AdaptiveCycles(chooser, no_time))
    for number in range(24):
        host.requests[number] = host.scheduler.add(spec(number, prompt=10, max_tokens=2000))
    most = []
    for costs in (APART, TOGETHER, APART):
        chooser.costs = costs
        for _ in range(60):
            host.step()
        most.append(max(phases(step).count(Phase.VERIFY) for step in host.device.steps[-20:]))
    assert most[1] == 24
    assert max(most[0], most[2]) <= 2 * 24 / (MOST + 1)


@dataclass
class Clock:
    """Steps take what the chooser predicts, but lockstep's longer, and those that capture a graph 20 times as long."""

    chooser: Chooser
    lockstep_factor: float
    capture_every: int = 10**9  # steps
    num_steps: int = 0
    seconds: float = 0.0

    def __call__(self) -> Moment:
        return Moment(self.seconds, self.num_steps // self.capture_every)

    def pass_step(self) -> Kind:
        """What it was a step of."""
        choice = self.chooser.choice
        factor = self.lockstep_factor if choice.way.kind == "lockstep" else 1.0
        self.num_steps += 1
        factor += 19.0 * (self.num_steps % self.capture_every == 0)
        self.seconds += factor * self.chooser.costs.step_seconds(choice.load, choice.way)
        return choice.way.kind


def lockstep_is_faster() -> Chooser:
    """By some 20%, as is predicted."""
    return Chooser(replace(READING, latencies=StepLatencies(0.0, 0.0, 0.0, 0.82)), TURNING)


def kinds_of_steps(chooser: Chooser, clock: Clock, num_steps: int) -> list[Kind]:
    """Of 24 requests."""
    host = host_of(1.0, AdaptiveCycles(chooser, clock))
    for number in range(24):
        host.requests[number] = host.scheduler.add(spec(number, prompt=1000, max_tokens=1900))
    kinds: list[Kind] = []
    for _ in range(num_steps):
        host.step()
        kinds.append(clock.pass_step())
    return kinds


def test_steps_that_capture_graphs_say_nothing_of_a_policy() -> None:
    """Nor is another one tried for them."""
    chooser = lockstep_is_faster()
    kinds = kinds_of_steps(chooser, Clock(chooser, 1.0, capture_every=50), 700)
    assert "lockstep" in kinds[:50]
    assert kinds[50:] == ["lockstep"] * 650


@pytest.mark.parametrize(("lockstep_factor", "kept"), [(1.0, "lockstep"), (1.1, "lockstep"), (1.5, "unified")])
def test_a_policy_whose_steps_take_longer_than_predicted_is_left(lockstep_factor: float, kept: Kind) -> None:
    """It is predicted to be some 20% faster than the other."""
    chooser = lockstep_is_faster()
    kinds = kinds_of_steps(chooser, Clock(chooser, lockstep_factor), 900)
    predicted = [chooser.costs.speed(chooser.choice.load, Way(policy, MOST, READS), 1.0) for policy in TURNING.policies]
    assert 1.1 < predicted[1] / predicted[0] < 1.3
    assert "lockstep" in kinds
    assert kinds[-300:] == [kept] * 300
    assert sum(before != after for before, after in pairwise(kinds)) <= 3


def test_verifications_spread_at_once_when_everybody_takes_to_drafting() -> None:
    """From plain decoding, all in one step."""
    own = cycles("unified")
    host, chooser = host_of(1.0, own), own.chooser
    chooser.costs = replace(READING, draft_bandwidth=1.0)  # no drafting pays
    for number in range(24):
        host.requests[number] = host.scheduler.add(spec(number, prompt=200, max_tokens=2000))
    for _ in range(40):
        host.step()
    assert not chooser.choice.speculates
    chooser.costs = READING
    while not chooser.choice.speculates:
        begun = host.step().index
    for _ in range(2 * (MOST + 1)):
        host.step()
    checks = [sum(rows.num_rows > 1 for rows in step.rows) for step in host.device.steps[begun + 1 :]]
    assert max(checks) <= 2 * 24 / (MOST + 1)


@pytest.mark.parametrize(("halved", "budget"), [(0.99, 1), (0.8, 0)])
def test_what_drafts_read_is_tried_and_kept_if_it_pays(halved: float, budget: int) -> None:
    """Drafts agree nearly always with the config's own ratio; with half of it as often, or much less."""
    reads = (DraftReads(0.2, 1), DraftReads(0.1, 1))
    chooser = Chooser(READING, Options(MOST, ("unified",), reads, 1.0))
    host = host_of(0.99, AdaptiveCycles(chooser, no_time))
    for number in range(24):
        host.requests[number] = host.scheduler.add(spec(number, prompt=400, max_tokens=6000))
    budgets = []
    for _ in range(600):
        budgets.append(host.step().budget)
        host.device.acceptance = halved if budgets[-1] else 0.99
    assert 1 in budgets
    assert budgets[-1] == budget
    assert sum(before != after for before, after in pairwise(budgets)) <= 2


def test_where_nobody_drafts_nothing_is_learned() -> None:
    """Whatever number of plain steps there are: no request's verifications are looked through."""
    own = cycles("unified", max_kv_share=0.0)
    host = host_of(1.0, own)
    for number in range(4):
        host.requests[number] = host.scheduler.add(spec(number))
    for _ in range(50):
        host.step()
    assert own._drafting == {}
    assert all(known.num_seen == 0 for known in own._known.values())
