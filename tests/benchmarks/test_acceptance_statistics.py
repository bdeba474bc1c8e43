from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from acceptance_study.observations import Observation
from acceptance_study.statistics import (
    Estimate,
    Measure,
    by_rule,
    corrected_confidence,
    estimate_difference,
    estimate_mean,
    in_same_cells,
    mean_accepted,
    rule_label,
)
from made_observations import make_cell, see, see_texts
from sparsespec.builder.errors import InputError

PAPER, OTHER = make_cell("paper"), make_cell("recent50")


def estimated(found: Estimate | None) -> Estimate:
    assert found is not None
    return found


def width(found: Estimate | None) -> float:
    return estimated(found).high - estimated(found).low


def clustered(generator: np.random.Generator, num_texts: int, mean: float) -> list[Observation]:
    """Three positions that differ little within a text."""
    seen = []
    for text in range(num_texts):
        hardness = generator.normal(mean, 1.0)
        seen += [see(PAPER, str(text), hardness + generator.normal(0.0, 0.2), position) for position in range(3)]
    return seen


def test_the_mean_is_over_cycles_not_over_positions() -> None:
    short = Observation(PAPER, "reference", "a", 0, 1, 8.0, 1, 8.0, None)
    long = Observation(PAPER, "reference", "b", 0, 9, 18.0, 4, 12.0, None)
    assert mean_accepted([short, long]) == pytest.approx(26 / 10)
    assert mean_accepted([short, long], fresh=True) == pytest.approx(20 / 5)
    assert estimated(estimate_mean([short, long])).value == pytest.approx(26 / 10)
    assert estimated(estimate_mean([short, long], fresh=True)).value == pytest.approx(20 / 5)


def test_no_cycle_has_no_mean() -> None:
    seen = [replace(see(PAPER, text, 3.0), fresh_cycles=0, fresh_accepted=0.0) for text in "ab"]
    assert mean_accepted([]) is None
    assert estimate_mean([]) is None
    assert estimate_mean(seen, fresh=True) is None
    assert estimate_difference(seen, seen, fresh=True) is None


def test_resamples_without_a_cycle_do_not_count() -> None:
    repetitive = [replace(see(PAPER, text, 3.0), fresh_cycles=0, fresh_accepted=0.0) for text in "abc"]
    found = estimated(estimate_mean([*repetitive, see(PAPER, "d", 4.0)], fresh=True))
    assert (found.value, found.low, found.high) == (5.0, 5.0, 5.0)


def test_intervals_hold_the_true_mean_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    found = [estimated(estimate_mean(clustered(generator, 30, mean=4.0), confidence=0.9)) for _ in range(150)]
    covered = sum(one.low <= 4.0 <= one.high for one in found)
    assert 0.80 <= covered / 150 <= 0.96


def test_positions_of_one_text_are_not_independent() -> None:
    """The width is that of the texts, 2 * 1.96 / sqrt(texts), however many positions each has."""
    seen = clustered(np.random.default_rng(1), 100, mean=4.0)
    assert width(estimate_mean(seen)) == pytest.approx(2 * 1.96 / 10, rel=0.25)


def test_a_text_at_another_context_is_the_same_cluster() -> None:
    elsewhere = make_cell(context=2048)
    seen = [see(cell, "a", mean) for cell, mean in ((PAPER, 2.0), (elsewhere, 4.0))]
    assert estimated(estimate_mean(seen)) == Estimate(3.0, -np.inf, np.inf)


def test_one_text_says_nothing_of_others() -> None:
    found = estimated(estimate_mean([see(PAPER, "a", 3.0), see(PAPER, "a", 4.0, position=1)]))
    assert found == Estimate(3.5, -np.inf, np.inf)
    assert not found.excludes_zero


def test_the_order_of_observations_does_not_matter() -> None:
    seen = see_texts(PAPER, 3.0)
    assert estimated(estimate_mean(seen)).low == pytest.approx(estimated(estimate_mean(seen[::-1])).low, rel=1e-12)


def test_pairs_take_out_what_texts_have_in_common() -> None:
    paper, other = see_texts(PAPER, 3.0, spread=1.5), see_texts(OTHER, 3.5, spread=1.5)
    found = estimated(estimate_difference(other, paper))
    assert found.low < 0.5 < found.high
    assert found.excludes_zero
    assert width(found) < width(estimate_mean(paper)) / 5


def test_pairs_go_by_place_not_by_order() -> None:
    paper, other = see_texts(PAPER, 3.0), see_texts(OTHER, 3.5)
    found, turned = estimate_difference(other, paper), estimate_difference(other[::-1], paper)
    assert width(found) == pytest.approx(width(turned))


def test_a_rule_does_not_differ_from_itself() -> None:
    seen = see_texts(PAPER, 3.0)
    assert estimate_difference(seen, seen) == Estimate(0.0, 0.0, 0.0)
    assert not Estimate(0.0, 0.0, 0.0).excludes_zero


@pytest.mark.parametrize(
    "elsewhere",
    [
        replace(see(OTHER, "a", 3.0), source="licences"),
        see(OTHER, "b", 3.0),
        see(OTHER, "a", 3.0, position=1),
        see(make_cell("recent50", context=2048), "a", 3.0),
        see(make_cell("recent50", temperature=0.6), "a", 3.0),
        see(make_cell("recent50", ratio=0.1), "a", 3.0),
        see(replace(OTHER, half="confirm"), "a", 3.0),
        see(replace(OTHER, study="loops"), "a", 3.0),
    ],
)
def test_other_places_are_refused(elsewhere: Observation) -> None:
    with pytest.raises(InputError, match="recent50 and paper: expected observations of the same places"):
        estimate_difference([elsewhere], [see(PAPER, "a", 3.0)])


def test_a_place_that_one_rule_lacks_is_refused() -> None:
    paper, other = see_texts(PAPER, 3.0), see_texts(OTHER, 3.5)
    for pair in ((other[1:], paper), (other, paper[1:]), (other, [])):
        with pytest.raises(InputError, match="the same places"):
            estimate_difference(*pair)


def test_a_place_seen_twice_is_refused() -> None:
    paper, other = see_texts(PAPER, 3.0), see_texts(OTHER, 3.5)
    with pytest.raises(InputError, match="recent50: expected one observation of a place"):
        estimate_difference([*other, other[0]], [*paper, paper[0]])


def test_more_comparisons_make_wider_intervals() -> None:
    paper, other = see_texts(PAPER, 3.0), see_texts(OTHER, 3.5)
    assert corrected_confidence(0.95, 1) == pytest.approx(0.95)
    assert corrected_confidence(0.95, 10) == pytest.approx(0.995)
    widths = [width(estimate_difference(other, paper, corrected_confidence(0.95, count))) for count in (1, 4, 40)]
    assert widths[0] < widths[1] < widths[2]


def test_a_least_budget_is_a_way_of_its_own() -> None:
    assert rule_label(see(PAPER, "a", 3.0)) == "paper"
    assert rule_label(see(replace(PAPER, min_budget=192), "a", 3.0)) == "paper, at least 192 tokens"


def test_a_measure_looks_at_its_study_budget_and_temperature() -> None:
    here, shipped = see(PAPER, "a", 3.0), see(replace(PAPER, min_budget=192), "a", 3.0)
    others = [
        see(make_cell(ratio=0.1), "a", 3.0),
        see(make_cell(temperature=0.6), "a", 3.0),
        see(replace(PAPER, study="loops"), "a", 3.0),
    ]
    found = by_rule([here, *others, shipped], Measure("branches", 0.05, 0.0))
    assert found == {"paper": [here], "paper, at least 192 tokens": [shipped]}


def test_ngram_has_no_budget_and_belongs_wherever_others_are() -> None:
    ngram, other = see(make_cell("ngram", ratio=0.05), "a", 1.0), see(make_cell(ratio=0.1), "a", 3.0)
    elsewhere = see(make_cell("ngram", ratio=0.05, context=4096), "a", 7.0)
    rules = by_rule([ngram, elsewhere, other], Measure("branches", 0.1, 0.0))
    assert [seen.cell.context for seen in rules["ngram"]] == [other.cell.context]
    assert len(by_rule([ngram, elsewhere], Measure("branches", 0.1, 0.0))["ngram"]) == 2
    assert estimated(estimate_difference(rules["ngram"], rules["paper"])).value == pytest.approx(-2.0)


def test_a_baseline_is_cut_to_the_cells_of_a_rule() -> None:
    at_1k, at_2k, confirming = (
        see(cell, "a", 3.0) for cell in (PAPER, make_cell(context=2048), replace(PAPER, half="confirm"))
    )
    assert in_same_cells([at_1k, at_2k, confirming], [see(OTHER, "b", 3.0)]) == [at_1k]
