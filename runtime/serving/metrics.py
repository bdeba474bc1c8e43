"""What the service counts, for Prometheus' page and for Triton's custom metrics. No torch, and nothing of either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sparsespec.runtime.engine_status import EngineStatus
from sparsespec.runtime.outputs import OutputDelta
from sparsespec.runtime.serving.histogram import Histogram, MetricFamily, Sample
from sparsespec.runtime.serving.recent import RecentTokens
from sparsespec.runtime.serving.request_record import OUTCOMES, RequestRecord
from sparsespec.runtime.serving.step_meter import StepMeter
from sparsespec.runtime.verification import Verification

FIRST_TOKEN_BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
TOKEN_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
REQUEST_BOUNDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0)
ACCEPTED_BOUNDS = tuple(range(17))


class ServiceMetrics:
    """Counts steps, which an LLM is given `steps` for as its recorder, and requests, in the event loop's thread."""

    def __init__(self) -> None:
        self.steps = StepMeter()
        self.recent = RecentTokens()
        self._outcomes = dict.fromkeys(OUTCOMES, 0)
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._drafts = 0
        self._accepted_drafts = Histogram(ACCEPTED_BOUNDS)
        self._first_token_seconds = Histogram(FIRST_TOKEN_BOUNDS)
        self._token_seconds = Histogram(TOKEN_BOUNDS)
        self._request_seconds = Histogram(REQUEST_BOUNDS)

    def gain(self, delta: OutputDelta, verifications: Sequence[Verification]) -> None:
        """An answer gained something; verifications are the delta's."""
        self._output_tokens += len(delta.token_ids)
        self.recent.add_tokens(len(delta.token_ids))
        for check in verifications:
            if check.num_drafts > 0:
                self._drafts += check.num_drafts
                self._accepted_drafts.observe(check.num_accepted)
                self.recent.add_verification(check.num_drafts, check.num_accepted)

    def end(self, record: RequestRecord) -> None:
        """A request has come to its end, whatever that was."""
        self._outcomes[record.outcome] += 1
        self._prompt_tokens += record.prompt_tokens
        if record.first_token_s is not None:
            self._first_token_seconds.observe(record.first_token_s)
        if record.outcome == "finished":
            self._request_seconds.observe(record.duration_s)
        if record.token_s is not None:
            self._token_seconds.observe(record.token_s)

    def families(self, status: EngineStatus) -> Sequence[MetricFamily]:
        """Everything, as of now."""
        return [*self._gauges(status), *self._counters(), *self._histograms()]

    def _gauges(self, status: EngineStatus) -> list[MetricFamily]:
        return [
            _number("answers_running", "Answers in the batch", "gauge", status.num_running),
            _number("answers_waiting", "Answers that wait for a place in the batch", "gauge", status.num_waiting),
            _number("kv_cache_pages", "Pages of the KV cache", "gauge", status.num_pages),
            _number("kv_cache_usage", "Share of the KV cache's pages in use", "gauge", status.kv_cache_usage),
        ]

    def _counters(self) -> list[MetricFamily]:
        by_outcome = tuple(Sample((("outcome", name),), count) for name, count in self._outcomes.items())
        return [
            MetricFamily("sparsespec_requests", "Requests that have ended, by how", "counter", by_outcome),
            _number("prompt_tokens", "Tokens of prompts that were answered", "counter", self._prompt_tokens),
            _number("output_tokens", "Tokens of answers", "counter", self._output_tokens),
            _number("drafts", "Drafts that were verified", "counter", self._drafts),
        ]

    def _histograms(self) -> list[MetricFamily]:
        return [
            _histogram("accepted_drafts", "Accepted drafts of a verification that had drafts", self._accepted_drafts),
            _histogram("step_seconds", "Host time from a step's beginning to its end", self.steps.step_seconds),
            _histogram("batch_size", "Answers that take part in a step", self.steps.batch_size),
            _histogram("first_token_seconds", "From a request to its first token", self._first_token_seconds),
            _histogram("token_seconds", "Mean time for each further token of an answer", self._token_seconds),
            _histogram("request_seconds", "From a request to its end, where it was answered", self._request_seconds),
        ]


def _number(name: str, text: str, kind: Literal["counter", "gauge"], value: float) -> MetricFamily:
    return MetricFamily(f"sparsespec_{name}", text, kind, (Sample((), value),))


def _histogram(name: str, text: str, histogram: Histogram) -> MetricFamily:
    return MetricFamily(f"sparsespec_{name}", text, "histogram", histogram=histogram.values)
