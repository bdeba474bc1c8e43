"""Histograms, recent sums, a request's record, and their form for Prometheus."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsespec.builder.errors import InputError, RequestError
from sparsespec.runtime.engine_status import EngineStatus
from sparsespec.runtime.serving.histogram import Histogram
from sparsespec.runtime.serving.metrics import ServiceMetrics
from sparsespec.runtime.serving.recent import WINDOW_S, RecentTokens
from sparsespec.runtime.serving.request_record import RequestRecord
from sparsespec.runtime.serving.service_config import ServiceConfig
from sparsespec.runtime.serving.service_errors import (
    DeadlineError,
    DrainingError,
    EngineFailedError,
    OverloadedError,
)


@given(st.lists(st.floats(-10, 10)), st.lists(st.floats(-10, 10), min_size=1, unique=True).map(sorted))
def test_a_histogram_counts_by_the_smallest_bound_that_is_not_below(values: list[float], bounds: list[float]) -> None:
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    found = histogram.values
    assert found.cumulative == (*tuple(bisect.bisect_right(sorted(values), bound) for bound in bounds), len(values))
    assert found.num_values == len(values)
    assert found.total == pytest.approx(sum(values))


def test_recent_sums_forget_what_is_older_than_the_window() -> None:
    now = [1000.0]
    recent = RecentTokens(clock=lambda: now[0])
    assert (recent.tokens_per_second, recent.accepted_drafts_mean) == (0, None)
    recent.add_tokens(30)
    recent.add_verification(num_drafts=8, num_accepted=6)
    now[0] += 5
    recent.add_tokens(20)
    recent.add_verification(num_drafts=4, num_accepted=1)
    assert recent.tokens_per_second == 50 / WINDOW_S
    assert (recent.drafts_mean, recent.accepted_drafts_mean) == (6, 3.5)
    now[0] += WINDOW_S - 5
    assert recent.tokens_per_second == 20 / WINDOW_S
    assert recent.accepted_drafts_mean == 1
    now[0] += WINDOW_S
    assert (recent.tokens_per_second, recent.drafts_mean) == (0, None)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RequestError("wrong"), "invalid"),
        (OverloadedError("full"), "overloaded"),
        (DrainingError("ends"), "draining"),
        (DeadlineError("late"), "timed_out"),
        (EngineFailedError("broken"), "failed"),
        (ValueError("unforeseen"), "failed"),
        (GeneratorExit(), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_outcomes_of_errors(error: BaseException, outcome: str) -> None:
    record = RequestRecord("r")
    record.fail(error)
    ended = record.end()
    assert ended.outcome == outcome
    assert ended.error == (None if outcome == "cancelled" else str(error))


def test_what_is_neither_finished_nor_failed_was_left() -> None:
    ticks: Iterator[int] = count()
    ended = RequestRecord("r", clock=lambda: float(next(ticks))).end()
    assert (ended.outcome, ended.duration_s, ended.first_token_s) == ("cancelled", 1.0, None)


def test_families_have_names_of_their_own_and_all_kinds() -> None:
    families = ServiceMetrics().families(EngineStatus(num_running=3, num_waiting=2, num_pages=8, num_used_pages=2))
    names = [family.name for family in families]
    assert len(names) == len(dict.fromkeys(names))
    assert all(name.startswith("sparsespec_") for name in names)
    values = {family.name: family.samples[0].value for family in families if family.kind == "gauge"}
    assert values["sparsespec_answers_running"] == 3
    assert values["sparsespec_answers_waiting"] == 2
    assert values["sparsespec_kv_cache_usage"] == 0.25
    assert all((family.histogram is None) == (family.kind != "histogram") for family in families)


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("max_requests", 0, "at least 1"),
        ("max_requests", 65_537, "at most 65536"),
        ("request_timeout_s", 0.0, r"in \(0, 604800\]"),
        ("request_timeout_s", float("nan"), r"in \(0, 604800\]"),
        ("drain_timeout_s", -1.0, r"in \(0, 604800\]"),
        ("drain_timeout_s", "soon", "float"),
    ],
)
def test_limits_of_the_service(name: str, value: object, limit: str) -> None:
    with pytest.raises(InputError, match=f"{name}.*{limit}.*found"):
        ServiceConfig(**{name: value})  # type: ignore[arg-type]
