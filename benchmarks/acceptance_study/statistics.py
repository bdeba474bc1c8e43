"""Means and differences of acceptance, with intervals from a bootstrap over texts.

Cycles of one text are alike, so whole clusters are drawn anew, not cycles. All rules meet the same draws: the interval
of a difference is that of pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from acceptance_study.observations import Half, Observation, Study
from acceptance_study.rules import NGRAM
from sparsespec.builder.errors import InputError

NUM_RESAMPLES = 20_000
_SEED = 2512

Floats = NDArray[np.float64]
Cluster = tuple[str, str]
Place = tuple[Study, Half, str, str, int, int, float, float]


@dataclass(frozen=True)
class Estimate:
    """Accepted drafts per cycle, or a difference of two such means, with its interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Measure:
    """What one column of a table looks at."""

    study: Study
    ratio: float
    temperature: float
    fresh: bool = False  # only what lies outside repetitive stretches

    @property
    def budget(self) -> str:
        """Ratio, in words."""
        return f"{100 * self.ratio:g}% of the context"

    @property
    def decoding(self) -> str:
        """Temperature, in words."""
        return f"T={self.temperature:g}" if self.temperature else "greedy"


def rule_label(seen: Observation) -> str:
    """The rule; one that never reads fewer than so many tokens is a way of its own."""
    fewest = seen.cell.min_budget
    return f"{seen.cell.rule}, at least {fewest} tokens" if fewest > 1 else seen.cell.rule


def by_rule(observations: Sequence[Observation], measure: Measure) -> dict[str, list[Observation]]:
    """Of each rule, what `measure` looks at, the rules in the order of their first observation.

    A rule without a budget counts at every ratio, in the cells that others were measured in there.
    """
    decoded = [one for one in observations if (one.cell.study, one.cell.temperature) == _decoding(measure)]
    others = [one for one in decoded if one.cell.rule != NGRAM and one.cell.ratio == measure.ratio]
    covered = _cells_of(others)
    found: dict[str, list[Observation]] = {}
    for seen in decoded:
        cell = seen.cell
        if cell.rule == NGRAM and (not covered or (cell.context, cell.half) in covered):
            found.setdefault(rule_label(seen), []).append(replace(seen, cell=replace(cell, ratio=measure.ratio)))
        elif cell.rule != NGRAM and cell.ratio == measure.ratio:
            found.setdefault(rule_label(seen), []).append(seen)
    return found


def in_same_cells(baseline: Sequence[Observation], observations: Sequence[Observation]) -> list[Observation]:
    """What `baseline` has at the contexts and halves that `observations` cover."""
    covered = _cells_of(observations)
    return [seen for seen in baseline if (seen.cell.context, seen.cell.half) in covered]


def _decoding(measure: Measure) -> tuple[Study, float]:
    return measure.study, measure.temperature


def _cells_of(observations: Sequence[Observation]) -> dict[tuple[int, Half], None]:
    """Contexts and halves, each once."""
    return {(seen.cell.context, seen.cell.half): None for seen in observations}


def mean_accepted(observations: Sequence[Observation], fresh: bool = False) -> float | None:
    """Accepted drafts per cycle: a ratio of sums. None without any cycle."""
    accepted, cycles = np.sum([_counts(seen, fresh) for seen in observations], axis=0) if observations else (0, 0)
    return float(accepted / cycles) if cycles else None


def estimate_mean(
    observations: Sequence[Observation], confidence: float = 0.95, fresh: bool = False
) -> Estimate | None:
    """`mean_accepted` with its interval."""
    return _estimate(_resampled_means(observations, fresh), confidence)


def estimate_difference(
    observations: Sequence[Observation],
    baseline: Sequence[Observation],
    confidence: float = 0.95,
    fresh: bool = False,
) -> Estimate | None:
    """Mean of `observations` less that of `baseline`, measured at the same places. None without any cycle.

    Raises InputError where the places differ.
    """
    _check_pairs(observations, baseline)
    return _estimate(_resampled_means(observations, fresh) - _resampled_means(baseline, fresh), confidence)


def corrected_confidence(confidence: float, num_comparisons: int) -> float:
    """Bonferroni: with it, all of the intervals hold together at `confidence`."""
    return 1 - (1 - confidence) / num_comparisons


def _resampled_means(observations: Sequence[Observation], fresh: bool) -> Floats:
    """The mean as observed, then that of every resample; not a number where a resample has no cycle."""
    sums = _cluster_sums(observations, fresh)
    accepted, cycles = (_weights(len(sums)) @ sums).T if len(sums) else np.zeros((2, 1 + NUM_RESAMPLES))
    return np.divide(accepted, cycles, out=np.full_like(accepted, np.nan), where=cycles > 0)


def _cluster_sums(observations: Sequence[Observation], fresh: bool) -> Floats:
    """[clusters, 2]: accepted drafts and cycles, the clusters in an order that the files do not matter for."""
    sums: dict[Cluster, Floats] = {cluster: np.zeros(2) for cluster in sorted(seen.cluster for seen in observations)}
    for seen in observations:
        sums[seen.cluster] += _counts(seen, fresh)
    return np.array(list(sums.values()))


def _counts(seen: Observation, fresh: bool) -> tuple[float, int]:
    return (seen.fresh_accepted, seen.fresh_cycles) if fresh else (seen.num_accepted, seen.num_cycles)


@lru_cache(maxsize=16)
def _weights(num_clusters: int) -> Floats:
    """How often each cluster counts: once as observed (row 0), then in every resample."""
    if num_clusters == 1:  # one text says nothing of others: its resamples are empty
        return np.eye(1 + NUM_RESAMPLES, 1)
    chances = np.full(num_clusters, 1 / num_clusters)
    drawn = np.random.default_rng(_SEED).multinomial(num_clusters, chances, size=NUM_RESAMPLES)
    return np.concatenate([np.ones((1, num_clusters)), drawn])


def _estimate(resampled: Floats, confidence: float) -> Estimate | None:
    value, resamples = resampled[0], resampled[1:]
    if np.isnan(value):
        return None
    known = resamples[~np.isnan(resamples)]
    if not len(known):
        return Estimate(float(value), -np.inf, np.inf)
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, (tail, 1 - tail))
    return Estimate(float(value), float(low), float(high))


def _check_pairs(observations: Sequence[Observation], baseline: Sequence[Observation]) -> None:
    ours, theirs = (Counter(map(_place, side)) for side in (observations, baseline))
    for places, side in ((ours, observations), (theirs, baseline)):
        twice = [place for place, count in places.items() if count > 1]
        if twice:
            raise InputError(f"{rule_label(side[0])}: expected one observation of a place, found more of {twice[0]}")
    for places, others in ((ours, theirs), (theirs, ours)):
        alone = list(places - others)
        if alone:
            names = " and ".join(rule_label(side[0]) if side else "nothing" for side in (observations, baseline))
            raise InputError(f"{names}: expected observations of the same places, found one of only {alone[0]}")


def _place(seen: Observation) -> Place:
    cell = seen.cell
    return (
        cell.study,
        cell.half,
        seen.source,
        seen.text,
        seen.position,
        cell.context,
        cell.temperature,
        cell.ratio,
    )
