"""The service's metrics on Triton's own /metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, nextafter

from sparsespec.runtime.serving.histogram import HistogramValues, MetricFamily, Sample
from sparsespec.runtime.serving.triton import python_backend
from sparsespec.runtime.serving.triton.python_backend import Metric, PythonBackend

Labels = tuple[tuple[str, str], ...]


class CustomMetrics:
    """Brings Triton's metrics up to what was counted since the last time; calls take some 10 microseconds each."""

    def __init__(self, backend: PythonBackend, families: Sequence[MetricFamily], labels: Mapping[str, str]) -> None:
        """labels: of every metric, beside its own."""
        self._labels = labels
        self._families = {family.name: _make_family(backend, family) for family in families}
        self._metrics: dict[tuple[str, Labels], Metric] = {}
        self._counted: dict[tuple[str, Labels], float] = {}
        self._observed: dict[str, HistogramValues] = {}

    def publish(self, families: Sequence[MetricFamily]) -> None:
        """Families as at the beginning, and their values of now."""
        for family in families:
            for sample in family.samples:
                self._publish_sample(family, sample)
            if family.histogram is not None:
                self._publish_histogram(family.name, family.histogram)

    def close(self) -> None:
        """Metrics have to go before their families."""
        self._metrics.clear()
        self._families.clear()

    def _publish_sample(self, family: MetricFamily, sample: Sample) -> None:
        key = (family.name, sample.labels)
        metric = self._metric(key, lambda labels: self._families[family.name].Metric(labels=labels))
        if family.kind == "gauge":
            metric.set(sample.value)
        else:
            metric.increment(sample.value - self._counted.get(key, 0))
            self._counted[key] = sample.value

    def _publish_histogram(self, name: str, now: HistogramValues) -> None:
        buckets = list(now.bounds)
        metric = self._metric((name, ()), lambda labels: self._families[name].Metric(labels=labels, buckets=buckets))
        before = self._observed.get(name, HistogramValues(now.bounds, (0,) * len(now.counts), 0.0))
        self._observed[name] = now
        counts = tuple(new - old for new, old in zip(now.counts, before.counts, strict=True))
        values = typical_values(HistogramValues(now.bounds, counts, now.total - before.total))
        for value, count in zip(values, counts, strict=True):
            for _ in range(count):
                metric.observe(value)

    def _metric(self, key: tuple[str, Labels], make: Callable[[Mapping[str, str]], Metric]) -> Metric:
        if key not in self._metrics:
            self._metrics[key] = make({**self._labels, **dict(key[1])})
        return self._metrics[key]


def typical_values(observed: HistogramValues) -> list[float]:
    """A value within each bucket, such that with them the sum is the one observed: Triton takes values, one by one."""
    lows = [0.0, *observed.bounds]
    widths = [high - low for low, high in zip(lows, observed.bounds, strict=False)]
    width = sum(count * each for count, each in zip(observed.counts, widths, strict=False))
    beyond = observed.total - sum(count * low for count, low in zip(observed.counts, lows, strict=True))
    share = min(max(beyond / width, 0.0), 1.0) if width else 0.0
    values = [low + share * each for low, each in zip(lows, widths, strict=False)]
    largest = lows[-1] + (beyond - share * width) / max(observed.counts[-1], 1)
    # A bucket takes in its upper bound and not its lower one, whatever rounding does.
    bounded = zip(values, lows, observed.bounds, strict=False)
    return [
        *(min(max(value, nextafter(low, inf)), high) for value, low, high in bounded),
        max(largest, nextafter(lows[-1], inf)),
    ]


def _make_family(backend: PythonBackend, family: MetricFamily) -> python_backend.MetricFamily:
    kinds = {
        "counter": backend.MetricFamily.COUNTER,
        "gauge": backend.MetricFamily.GAUGE,
        "histogram": backend.MetricFamily.HISTOGRAM,
    }
    name = f"{family.name}_total" if family.kind == "counter" else family.name
    return backend.MetricFamily(name=name, description=family.help, kind=kinds[family.kind])
