from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chooser_cases import LARGE, READS, SMALL, SMALL_ON_H200, Agreeing, non_decreasing, options
from sparsespec.runtime.chooser import PROBE_SHARE, Chooser, Options
from sparsespec.runtime.config import Policy
from sparsespec.runtime.cost_model import CostModel, DraftReads, StepLatencies, Way, expected_accepted
from sparsespec.runtime.cycles import Load

LONG = Load(96, 8192.0, 0.5)
AGREEMENTS = [place / 20 for place in range(21)]


@pytest.mark.parametrize("policy", ["unified", "lockstep"])
@pytest.mark.parametrize("costs", [LARGE, SMALL])
def test_more_agreement_means_more_drafts(costs: CostModel, policy: Policy) -> None:
    numbers = [Chooser(costs, options(policy)).update(LONG, Agreeing(each)).way.num_drafts for each in AGREEMENTS]
    assert non_decreasing(numbers)
    assert (numbers[0], numbers[-1]) == (0, 16)


def test_a_requests_own_agreement_counts_too() -> None:
    chooser = Chooser(LARGE, options())
    chooser.update(LONG, Agreeing(0.8))
    numbers = [chooser.drafts_for(each, 8192) for each in AGREEMENTS]
    assert non_decreasing(numbers)
    assert (numbers[0], numbers[-1]) == (0, 16)


def test_a_longer_context_is_worth_more_drafts() -> None:
    numbers = [
        Chooser(LARGE, options()).update(Load(96, 2.0**n, 0.5), Agreeing(0.8)).way.num_drafts for n in range(6, 18)
    ]
    assert non_decreasing(numbers)
    assert numbers[0] < 3 < numbers[-1]


@pytest.mark.parametrize("load", [Load(1, 100.0, 0.0), Load(1, 1000.0, 0.0), Load(96, 100.0, 0.1)])
def test_where_reading_is_little_speculation_brings_nothing(load: Load) -> None:
    """A step takes what its weights take, whoever drafts."""
    assert not Chooser(LARGE, options()).update(load, Agreeing(0.9)).speculates


def test_one_long_request_speculates() -> None:
    assert Chooser(LARGE, options()).update(Load(1, 131_072.0, 0.5), Agreeing(0.9)).speculates


def test_lockstep_has_one_number_for_all() -> None:
    chooser = Chooser(LARGE, options("lockstep"))
    number = chooser.update(LONG, Agreeing(0.85)).way.num_drafts
    assert [chooser.drafts_for(each, 100) for each in (0.0, 0.5, 1.0)] == [number] * 3


def test_beyond_its_share_of_the_pages_nothing_drafts_nor_probes() -> None:
    chooser = Chooser(LARGE, options(max_kv_share=0.8))
    assert chooser.update(Load(96, 8192.0, 0.8), Agreeing(0.9)).speculates
    choice = chooser.update(Load(96, 8192.0, 0.81), Agreeing(0.9))
    assert (choice.speculates, choice.may_pay) == (False, False)
    for _ in range(10_000):
        chooser.pass_step()
    assert chooser.take_probe() == 0


def test_small_changes_change_nothing() -> None:
    """Around where speculation neither gains nor loses, and between numbers of drafts that are as good."""
    chooser = Chooser(LARGE, options())
    gains = [(each / 1000, best_gain(LARGE, LONG, each / 1000)) for each in range(1000)]
    none, some = (next(each for each, gain in gains if gain > limit) for limit in (1.0, 1.05))
    assert not chooser.update(LONG, Agreeing(none)).speculates
    taken_up = chooser.update(LONG, Agreeing(some))
    assert taken_up.speculates
    assert chooser.update(LONG, Agreeing(none)).speculates
    assert not chooser.update(LONG, Agreeing(0.1)).speculates
    settled = chooser.update(LONG, Agreeing(0.85)).way
    assert chooser.update(LONG, Agreeing(0.855)).way == settled


def best_gain(costs: CostModel, load: Load, agreement: float) -> float:
    ways = [Way("unified", number, READS) for number in range(17)]
    return max(costs.speed(load, way, agreement) for way in ways) / costs.plain_speed(load)


@st.composite
def cost_models(draw: st.DrawFn) -> CostModel:
    seconds = sorted(draw(st.lists(st.floats(1e-4, 3e-2), min_size=3, max_size=3)))
    read = draw(st.floats(1e11, 5e12))
    return CostModel(
        rows=((1, seconds[0]), (64, seconds[1]), (1024, seconds[2])),
        kv_bytes_per_token=draw(st.integers(1000, 300_000)),
        plain_bandwidth=read,
        verify_bandwidth=read * draw(st.floats(0.7, 1.0)),
        draft_bandwidth=read * draw(st.floats(0.1, 0.9)),
        latencies=StepLatencies(*(draw(st.floats(0, 2e-3)) for _ in range(4))),
    )


loads = st.builds(Load, st.integers(1, 512), st.floats(1, 131_072), st.floats(0, 1))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(costs=cost_models(), policy=st.sampled_from(("unified", "lockstep")), data=st.data())
def test_never_predicted_more_than_3_percent_slower_than_plain(
    costs: CostModel, policy: Policy, data: st.DataObject
) -> None:
    """Whatever was done before; what probes cost included, of which each step pays a share."""
    chooser = Chooser(costs, options(policy))
    for load, agreement in data.draw(st.lists(st.tuples(loads, st.floats(0, 1)), min_size=1, max_size=5)):
        choice = chooser.update(load, Agreeing(agreement))
        num_steps, spent = 2000, 0.0
        for _ in range(num_steps):
            chooser.pass_step()
            spent += chooser.probe_cost() if chooser.take_probe() else 0.0
        cycle = load.num_requests * (1 + expected_accepted(agreement, choice.way.num_drafts)) / choice.speed
        seconds = num_steps * cycle / (choice.way.num_drafts + 1)
        assert spent <= PROBE_SHARE * seconds * (1 + 1e-9) + chooser.probe_cost() * (spent > 0)
        assert choice.speed / (1 + PROBE_SHARE) >= 0.97 * choice.plain_speed
    assert chooser.choice.plain_speed == costs.plain_speed(chooser.choice.load)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(costs=cost_models(), load=loads, agreement=st.floats(0, 0.99))
def test_own_numbers_at_the_mean_lose_little_against_the_best_common_one(
    costs: CostModel, load: Load, agreement: float
) -> None:
    """Numbers are for agreements and contexts by steps, and no request's is slower than plain decoding by much."""
    chooser = Chooser(costs, options())
    choice = chooser.update(load, Agreeing(agreement))
    own = chooser.drafts_for(agreement, int(load.context))
    speed = costs.speed(load, Way("unified", own, READS), agreement)
    assert speed >= 0.97 * choice.plain_speed
    assert speed >= 0.9 * choice.speed


def test_a_requests_own_number_goes_by_what_the_steps_of_all_take() -> None:
    """Also of a request whose context is far from where that was measured: drafts gain it less than they cost."""
    chooser, near, far = Chooser(LARGE, options()), 8192, 3000
    chooser.update(LONG, Agreeing(0.95))
    agreement = next(
        each / 64 for each in range(64) if best_gain(LARGE, replace(LONG, context=3072.0), each / 64) > 1.1
    )
    assert chooser.drafts_for(agreement, far) > 0
    for _ in range(13):
        chooser.pass_time(LONG, 16, 1.3 * 16 * LARGE.step_seconds(LONG, chooser.choice.way))
    assert chooser.update(LONG, Agreeing(0.95)).speculates
    assert chooser.drafts_for(agreement, far) == 0
    assert chooser.drafts_for(0.95, near) > 0


def test_probes_come_back_and_are_few() -> None:
    chooser = Chooser(LARGE, options())
    assert not chooser.update(LONG, Agreeing(0.0)).speculates
    probes = 0
    for _ in range(1000):
        chooser.pass_step()
        probes += chooser.take_probe() > 0
    assert 10 < probes < 1000
    assert Chooser(LARGE, options(max_drafts=2)).options.probe_drafts == 2


# Rows by which few steps of many are cheaper than many of a few more, and the other way round.
STEEP_AT_FIRST = replace(LARGE, rows=((1, 1e-3), (96, 1e-3), (181, 9e-3), (864, 11e-3)))
STEEP_LATER = replace(LARGE, rows=((1, 1e-3), (96, 1e-3), (181, 1.5e-3), (864, 60e-3)))
EITHER_POLICY = Options(16, ("unified", "lockstep"), (READS,), 1.0)


def test_the_policy_is_the_faster_one() -> None:
    """Unified steps all have the mean of the rows, of lockstep's some have few and one has many."""
    for costs, policy in ((STEEP_AT_FIRST, "lockstep"), (STEEP_LATER, "unified"), (LARGE, "unified")):
        choice = Chooser(costs, EITHER_POLICY).update(LONG, Agreeing(0.9))
        assert choice.speculates
        assert choice.way.policy == policy


def test_a_policy_is_left_for_5_percent_only() -> None:
    """Along a cost that moves from one to the other and back."""
    chooser, taken, gains = Chooser(LARGE, EITHER_POLICY), [], []
    for step in (*range(41), *range(40, -1, -1)):
        chooser.costs = replace(LARGE, rows=((1, 1e-3), (96, 1e-3), (181, 1e-3 + 2e-4 * step), (864, 11e-3)))
        taken.append(chooser.update(LONG, Agreeing(0.9)).way.policy)
        best = [max(speeds(chooser.costs, policy, 0.9)) for policy in ("unified", "lockstep")]
        gains.append(best[1] / best[0])
    assert (taken[0], taken[40], taken[-1]) == ("unified", "lockstep", "unified")
    switches = [step for step in range(1, len(taken)) if taken[step] != taken[step - 1]]
    assert len(switches) == 2
    assert gains[switches[0]] >= 1.05
    assert gains[switches[1]] <= 1 / 1.039  # the number at work may be as much as 1% short of its policy's best


def speeds(costs: CostModel, policy: Policy, agreement: float) -> list[float]:
    return [costs.speed(LONG, Way(policy, number, READS), agreement) for number in range(1, 17)]


def test_plain_decoding_probes_under_the_first_policy() -> None:
    chooser = Chooser(STEEP_AT_FIRST, EITHER_POLICY)
    assert chooser.update(LONG, Agreeing(0.9)).way.policy == "lockstep"
    choice = chooser.update(LONG, Agreeing(0.0))
    assert (choice.speculates, choice.way.policy) == (False, "unified")


LESS, MORE = DraftReads(0.025, 64), DraftReads(0.1, 64)
ANY_READS = Options(16, ("unified",), (DraftReads(0.05, 64), LESS, MORE), 1.0)


@dataclass(frozen=True)
class AgreeingBy:
    """Agreements that differ by what drafts read."""

    shares: tuple[float, float, float]  # in the order of ANY_READS
    settled: bool = True

    def of(self, reads: DraftReads, context: float) -> float:
        """See Agreements."""
        return self.shares[ANY_READS.reads.index(reads)]


@pytest.mark.parametrize(
    ("shares", "budget"), [((0.9, 0.9, 0.9), 1), ((0.9, 0.8, 0.9), 0), ((0.8, 0.6, 0.95), 2), ((0.9, 0.85, 0.92), 0)]
)
def test_drafts_read_what_makes_them_fastest(shares: tuple[float, float, float], budget: int) -> None:
    """The config's own unless another gains 3%."""
    chooser = Chooser(LARGE, ANY_READS)
    assert chooser.update(Load(96, 32_768.0, 0.5), AgreeingBy(shares)).speculates
    assert chooser.budget == budget


def test_what_drafts_read_stays_while_the_last_change_is_not_understood() -> None:
    chooser = Chooser(LARGE, ANY_READS)
    chooser.update(Load(96, 32_768.0, 0.5), AgreeingBy((0.8, 0.6, 0.95), settled=False))
    assert chooser.budget == 0


def test_what_drafts_read_stays_while_nobody_drafts() -> None:
    chooser = Chooser(LARGE, ANY_READS)
    chooser.update(Load(96, 32_768.0, 0.5), AgreeingBy((0.8, 0.6, 0.95)))
    assert not chooser.update(Load(96, 100.0, 0.5), AgreeingBy((0.8, 0.6, 0.95))).speculates
    assert chooser.budget == 2


@pytest.mark.parametrize(
    ("batch", "speculates"), [(1, False), (8, False), (16, False), (64, True), (128, True), (512, True)]
)
def test_small_batches_of_a_small_model_decode_plainly(batch: int, speculates: bool) -> None:
    """As measured: 8 drafts lose up to a third of the speed below some 32 requests, and more than double it at 512."""
    choice = Chooser(SMALL_ON_H200, options(max_drafts=8)).update(Load(batch, 4090.0, 0.5), Agreeing(0.965))
    assert choice.speculates == speculates
