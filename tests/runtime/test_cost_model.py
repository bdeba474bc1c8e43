from __future__ import annotations

from dataclasses import replace

import pytest

from chooser_cases import LARGE, READS
from sparsespec.runtime.config import Policy
from sparsespec.runtime.cost_model import CostModel, DraftReads, Way, expected_accepted
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
