"""Counts by size, and what is exported of them. One thread observes; any thread may read, a little late."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal


@dataclass(frozen=True)
class Sample:
    """One number of a metric."""

    labels: tuple[tuple[str, str], ...]  # names and values
    value: float


@dataclass(frozen=True)
class HistogramValues:
    """What was observed so far."""

    bounds: tuple[float, ...]  # each bucket's largest value; one more bucket has no bound
    counts: tuple[int, ...]  # of each bucket alone
    total: float  # sum of all values

    @property
    def num_values(self) -> int:
        """How many were observed."""
        return sum(self.counts)

    @property
    def cumulative(self) -> tuple[int, ...]:
        """Of each bucket and those before it, as Prometheus has them."""
        return tuple(accumulate(self.counts))


@dataclass(frozen=True)
class MetricFamily:
    """A metric for export: samples of a counter or a gauge, or a histogram."""

    name: str  # without the "_total" of a counter
    help: str
    kind: Literal["counter", "gauge", "histogram"]
    samples: tuple[Sample, ...] = ()
    histogram: HistogramValues | None = None


class Histogram:
    """Counts values by the smallest bound that is not below them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """One more value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    @property
    def values(self) -> HistogramValues:
        """What was observed so far."""
        return HistogramValues(self._bounds, tuple(self._counts), self._total)
