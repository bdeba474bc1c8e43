from __future__ import annotations

from dataclasses import replace

import pytest

from chooser_cases import LARGE, READS, SMALL, SMALL_ON_H200
from sparsespec.runtime.config import Policy
from sparsespec.runtime.cost_model import CostModel, DraftReads, StepLatencies, Way, expected_accepted
from sparsespec.runtime.cycles import Load

UNIFIED = Way("unified", 8, READS)


@pytest.mark.parametrize(("agreement", "num_drafts"), [(0.0, 4), (0.5, 1), (0.9, 8), (1.0, 8), (0.7, 0)])
def test_expected_accepted_sums_the_chances_of_each_draft(agreement: float, num_drafts: int) -> None:
    chances = [agreement**place for place in range(1, num_drafts + 1)]
    assert expected_accepted(agreement, num_drafts) == pytest.approx(sum(chances))


def test_rows_are_interpolated_and_continued() -> None:
    model = replace(LARGE, rows=((10, 1.0), (20, 2.0), (40, 6.0)))
    seconds = [model.row_seconds(rows) for rows in (5, 10, 15, 20, 30, 40, 50)]
    assert seconds == pytest.approx([0.5, 1.0, 1.5, 2.0, 4.0, 6.0, 8.0])


def test_a_draft_reads_its_budget_and_never_much_more_than_there_is() -> None:
    reads = DraftReads(ratio=0.1, min_budget=200)
    assert [reads.tokens(context, 0) - 1 for context in (50, 1000, 5000)] == [50, 200, 500]


def flat(bandwidth: float) -> CostModel:
    """Rows cost nothing, a token one byte."""
    return CostModel(((1, 0.0), (1000, 0.0)), 1, bandwidth, bandwidth, bandwidth)


@pytest.mark.parametrize("policy", ["unified", "lockstep"])
def test_where_reading_is_all_speed_is_tokens_over_bytes(policy: Policy) -> None:
    load, way = Load(10, 10_000.0, 0.5), Way(policy, 8, READS)
    read = 8 * (500 + 9) + 10_000
    assert flat(100.0).speed(load, way, agreement=1.0) == pytest.approx(9 * 100.0 / read)
    assert flat(100.0).plain_speed(load) == pytest.approx(100.0 / 10_000)


def test_unified_rows_are_the_same_in_every_step_and_lockstep_rows_come_together() -> None:
    costs = CostModel(((0, 0.0), (1000, 1000.0)), 0, 1.0, 1.0, 1.0)
    load = Load(18, 1000.0, 0.0)
    assert costs.cycle_seconds(load, UNIFIED) == pytest.approx(18 * 17)
    assert costs.cycle_seconds(load, replace(UNIFIED, policy="lockstep")) == pytest.approx(18 * 8 + 18 * 9)


def test_many_rows_at_once_cost_lockstep_more_where_products_bound_them() -> None:
    """864 rows in one step of nine, or 181 in each: convex times of rows favour the even share."""
    load, convex = Load(96, 8192.0, 0.5), replace(LARGE, rows=((1, 4e-3), (200, 4e-3), (1000, 20e-3)))
    assert convex.cycle_seconds(load, UNIFIED) < convex.cycle_seconds(load, replace(UNIFIED, policy="lockstep"))


def test_the_design_case_gains_what_was_derived_for_it() -> None:
    """96 requests at 8k with 6.2 of 8 accepted: between 2 and 3 times plain decoding."""
    load, agreement = Load(96, 8192.0, 0.5), 0.945
    assert expected_accepted(agreement, 8) == pytest.approx(6.16, abs=0.3)
    assert 2 < LARGE.speed(load, UNIFIED, agreement) / LARGE.plain_speed(load) < 3


@pytest.mark.parametrize(
    ("batch", "accepted", "speed_up"),
    [(1, 8.0, 0.94), (8, 6.28, 0.69), (32, 6.72, 1.0), (128, 6.85, 1.51), (512, 7.26, 2.34)],
)
def test_what_was_measured_on_an_h200_is_what_the_model_says(batch: int, accepted: float, speed_up: float) -> None:
    """k = 8 over plain decoding at some 4k tokens, captures left out; see docs/performance.md."""
    load = Load(batch, 4090.0, 0.5)
    plain = SMALL_ON_H200.plain_speed(load)
    cycle = SMALL_ON_H200.cycle_seconds(load, Way("unified", 8, READS))
    assert batch * (1 + accepted) / cycle / plain == pytest.approx(speed_up, rel=0.11)


def test_beside_prompts_every_step_takes_longer_so_that_it_should_bring_more() -> None:
    """A chunk of 1,000 rows takes 18 ms: nine steps in which a request gains 7.2 tokens are worse than plain ones."""
    load = Load(96, 8192.0, 0.5)
    busy = replace(load, prompt_rows=1000.0)
    assert LARGE.prompt_seconds(load) == 0
    assert LARGE.prompt_seconds(busy) == pytest.approx(18.5e-3, rel=0.01)
    assert LARGE.plain_seconds(busy) == LARGE.plain_seconds(load) + LARGE.prompt_seconds(busy)
    for policy in ("unified", "lockstep"):
        way = replace(UNIFIED, policy=policy)
        assert LARGE.cycle_seconds(busy, way) == pytest.approx(
            LARGE.cycle_seconds(load, way) + 9 * LARGE.prompt_seconds(busy)
        )
    small = Load(32, 4096.0, 0.5)
    assert LARGE.speed(small, UNIFIED, 0.945) > LARGE.plain_speed(small)
    small = replace(small, prompt_rows=1000.0)
    assert LARGE.speed(small, UNIFIED, 0.945) < LARGE.plain_speed(small)


LATE = replace(SMALL, latencies=StepLatencies(plain=1e-3, draft=2e-3, verify=4e-3, mixed=8e-3))


@pytest.mark.parametrize(
    ("batch", "policy", "latency"),
    [
        (1, "unified", 4 * 2e-3 + 4e-3),
        (3, "unified", 3 * 8e-3 + 2 * 2e-3),
        (9, "unified", 5 * 8e-3),
        (9, "lockstep", 12e-3),
    ],
)
def test_a_cycle_has_the_latency_of_each_of_its_steps(batch: int, policy: Policy, latency: float) -> None:
    load, way = Load(batch, 1000.0, 0.5), Way(policy, 4, READS)
    assert LATE.cycle_seconds(load, way) - SMALL.cycle_seconds(load, way) == pytest.approx(latency)
    assert LATE.plain_seconds(load) - SMALL.plain_seconds(load) == pytest.approx(1e-3)
