"""The service's metrics as Triton's."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_triton import FakeBackend
from sparsespec.runtime.serving.histogram import Histogram, HistogramValues, MetricFamily, Sample
from sparsespec.runtime.serving.triton.custom_metrics import CustomMetrics, typical_values

BOUNDS = (0.0, 0.5, 2.0, 8.0)


def families(count: float, level: float, histogram: HistogramValues) -> list[MetricFamily]:
    by_outcome = (Sample((("outcome", "finished"),), count), Sample((("outcome", "failed"),), 0))
    return [
        MetricFamily("requests", "Requests", "counter", by_outcome),
        MetricFamily("usage", "Usage", "gauge", (Sample((), level),)),
        MetricFamily("seconds", "Seconds", "histogram", histogram=histogram),
    ]


def test_what_was_counted_since_the_last_time_is_published() -> None:
    backend, histogram = FakeBackend(), Histogram(BOUNDS)
    metrics = CustomMetrics(backend, families(0, 0, histogram.values), {"model": "m"})
    histogram.observe(0.3)
    metrics.publish(families(5, 0.5, histogram.values))
    for value in (0.4, 100.0):
        histogram.observe(value)
    metrics.publish(families(7, 0.25, histogram.values))
    made = backend.MetricFamily.made
    assert [(family.name, family.kind) for family in made.values()] == [
        ("requests_total", "counter"),
        ("usage", "gauge"),
        ("seconds", "histogram"),
    ]
    finished, failed = made["requests_total"].metrics
    assert (finished.labels, finished.value) == ({"model": "m", "outcome": "finished"}, 7)
    assert (failed.labels, failed.value) == ({"model": "m", "outcome": "failed"}, 0)
    assert made["usage"].metrics[0].value == 0.25
    (seconds,) = made["seconds"].metrics
    assert tuple(seconds.buckets or ()) == BOUNDS
    assert seconds.observed == pytest.approx([0.3, 0.5, 99.9])  # typical ones


@given(st.lists(st.floats(0, 50), max_size=30))
def test_typical_values_have_the_counts_and_the_sum_of_those_observed(observed: list[float]) -> None:
    histogram = Histogram(BOUNDS)
    for value in observed:
        histogram.observe(value)
    values = typical_values(histogram.values)
    assert [bisect_left(BOUNDS, value) for value in values] == list(range(len(BOUNDS) + 1))
    total = sum(value * count for value, count in zip(values, histogram.values.counts, strict=True))
    assert total == pytest.approx(sum(observed))
