"""The service's metrics as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from sparsespec.runtime.serving.histogram import HistogramValues, MetricFamily
from sparsespec.runtime.serving.service import Service


class ServiceCollector(Collector):
    """Asks the service whenever Prometheus asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Every family, as of now."""
        yield from map(_metric, self._service.metric_families())


def metrics_page(service: Service) -> bytes:
    """In Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ServiceCollector(service))
    return generate_latest(registry)


def _metric(family: MetricFamily) -> Metric:
    if family.histogram is not None:
        return HistogramMetricFamily(
            family.name, family.help, buckets=_buckets(family.histogram), sum_value=family.histogram.total
        )
    metric = Metric(family.name, family.help, family.kind)
    suffix = "_total" if family.kind == "counter" else ""
    for sample in family.samples:
        metric.add_sample(f"{family.name}{suffix}", dict(sample.labels), sample.value)
    return metric


def _buckets(values: HistogramValues) -> list[tuple[str, float]]:
    bounds = [*(f"{float(bound)}" for bound in values.bounds), "+Inf"]
    return [(bound, float(count)) for bound, count in zip(bounds, values.cumulative, strict=True)]
