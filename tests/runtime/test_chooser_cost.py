"""What an adaptive engine does where drafting does not pay, by the cost model's own clock: hardly more than plain."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from chooser_cases import LARGE, READS, SMALL_ON_H200, no_time, options
from fake_device import FakeDevice, FakeHost
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.adaptive_cycles import AdaptiveCycles
from sparsespec.runtime.chooser import Chooser
from sparsespec.runtime.config import Policy
from sparsespec.runtime.cost_model import CostModel
from sparsespec.runtime.kv_cache import KvCacheManager
from sparsespec.runtime.request import DraftShape, RequestSpec
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduled_step import ScheduledRows, ScheduledStep
from sparsespec.runtime.scheduler import Scheduler, SchedulerLimits

MOST = 8


@dataclass(frozen=True)
class CostClock:
    """Seconds of scheduled steps whose requests all have one context."""

    costs: CostModel
    context: float

    def seconds(self, step: ScheduledStep) -> float:
        """Of all that is scheduled: rows, padding, reads, scores."""
        rows = self.costs.step_row_seconds(sum(row.num_rows for row in step.rows))
        return rows + self._latency(step) + sum(self._read(row) for row in step.rows)

    def _latency(self, step: ScheduledStep) -> float:
        """Of the slowest kind; a step of drafts and single rows is as one of drafts and verifications."""
        latencies = self.costs.latencies
        drafts = sum(row.phase == Phase.DRAFT for row in step.rows)
        plain = sum(row.num_rows == 1 and not row.scored for row in step.rows) - drafts
        if plain == len(step.rows):
            return latencies.plain
        if drafts == len(step.rows):
            return latencies.draft
        return latencies.mixed if drafts else latencies.verify

    def _read(self, row: ScheduledRows) -> float:
        if row.phase == Phase.DRAFT:
            return self.costs.draft_read(self.context, MOST, READS)
        checks = row.scored or row.num_rows > 1
        return self.costs.verify_read(self.context) if checks else self.costs.plain_read(self.context)

    def plain_seconds(self, batch: int) -> float:
        """Of a plain step."""
        reads = batch * self.costs.plain_read(self.context)
        return self.costs.step_row_seconds(batch) + self.costs.latencies.plain + reads


def running(costs: CostModel, batch: int, policy: Policy, acceptance: float, context: int) -> FakeHost:
    """Requests whose prompts are in."""
    kv_cache = KvCacheManager(batch * (context // 512 + 30), 1024)
    cycles = AdaptiveCycles(Chooser(costs, options(policy, MOST)), no_time)
    scheduler = Scheduler(SchedulerLimits(batch, 10**6, 10**6), kv_cache, cycles)
    host = FakeHost(scheduler, FakeDevice(kv_cache, acceptance, seed=1), lag=1)
    for number in range(batch):
        spec = RequestSpec(number, (1,) * context, SamplingParams(), number, (), 20_000, DraftShape(MOST, MOST))
        host.requests[number] = host.scheduler.add(spec)
    while any(request.num_prefilled < context for request in host.requests.values()):
        host.step()
    return host


@dataclass(frozen=True)
class Spent:
    """By some steps."""

    excess: float  # over the seconds that plain decoding takes for the same tokens, as a share of them
    probes: int  # verifications of drafts


def measured(host: FakeHost, clock: CostClock, num_steps: int) -> Spent:
    def tokens() -> int:
        """On the device, so that lateness does not count."""
        return sum(host.device.kv_lens)

    before = tokens()
    steps = [host.step() for _ in range(num_steps)]
    plain = (tokens() - before) / len(host.requests) * clock.plain_seconds(len(host.requests))
    probes = sum(row.num_rows > 1 for step in steps for row in step.rows)
    return Spent(sum(clock.seconds(step) for step in steps) / plain - 1, probes)


@pytest.mark.parametrize(("batch", "num_steps"), [(1, 3000), (33, 600), (512, 180)])
@pytest.mark.parametrize("policy", ["unified", "lockstep"])
@pytest.mark.parametrize("costs", [LARGE, SMALL_ON_H200])
def test_where_no_draft_agrees_little_is_spent_to_know_it(
    costs: CostModel, policy: Policy, batch: int, num_steps: int
) -> None:
    """At a context where drafting would pay if they did; 1% is meant, and probes under way are not settled yet."""
    context = 60_000 if batch < 128 else 8000
    host = running(costs, batch, policy, acceptance=0.0, context=context)
    for _ in range(400 if batch < 128 else 60):  # until that is known
        host.step()
    spent = measured(host, CostClock(costs, context), num_steps)
    assert spent.probes > 0
    assert spent.excess < 0.02


@pytest.mark.parametrize("costs", [LARGE, SMALL_ON_H200])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_where_no_agreement_would_pay_nothing_is_spent(costs: CostModel, batch: int) -> None:
    """Short contexts: a step takes what its weights take."""
    host = running(costs, batch, "unified", acceptance=1.0, context=100)
    spent = measured(host, CostClock(costs, 100.0), 300)
    assert spent == Spent(pytest.approx(0.0), 0)  # type: ignore[arg-type]
