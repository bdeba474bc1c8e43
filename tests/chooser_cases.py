"""Costs, loads and requests for tests of the chooser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sparsespec.runtime.adaptive_cycles import Moment
from sparsespec.runtime.chooser import Options
from sparsespec.runtime.config import Policy
from sparsespec.runtime.cost_model import CostModel, DraftReads, StepLatencies
from sparsespec.runtime.cycles import Load

READS = DraftReads(ratio=0.05, min_budget=192)
# Of an 8B model on an H200: products as measured there, 147 kB of KV cache a token.
LARGE = CostModel(
    rows=((1, 3.9e-3), (96, 4.45e-3), (181, 5.43e-3), (864, 18.5e-3)),
    kv_bytes_per_token=147_456,
    plain_bandwidth=4.3e12,
    verify_bandwidth=3.9e12,
    draft_bandwidth=2.9e12,
)
# Of a 135M model: 23 kB a token.
SMALL = CostModel(
    rows=((1, 0.4e-3), (256, 0.61e-3), (483, 0.66e-3), (2304, 1.40e-3)),
    kv_bytes_per_token=23_040,
    plain_bandwidth=4.2e12,
    verify_bandwidth=3.6e12,
    draft_bandwidth=1.6e12,
)


# The same on an H200, fitted to the steps of `sweep_batch` (docs/performance.md).
SMALL_ON_H200 = CostModel(
    rows=((1, 0.65e-3), (64, 0.68e-3), (256, 0.82e-3), (512, 0.9e-3), (1024, 1.1e-3)),
    kv_bytes_per_token=23_040,
    plain_bandwidth=4.1e12,
    verify_bandwidth=3.3e12,
    draft_bandwidth=1.44e12,
    latencies=StepLatencies(plain=0.35e-3, draft=0.54e-3, verify=0.7e-3, mixed=0.68e-3),
)


def options(policy: Policy = "unified", max_drafts: int = 16, max_kv_share: float = 1.0) -> Options:
    return Options(max_drafts, (policy,), (READS,), max_kv_share)


@dataclass(frozen=True)
class GivenLoad:
    """cycles.LoadSource."""

    given: Load

    def load(self) -> Load:
        """See LoadSource."""
        return self.given


@dataclass(frozen=True)
class Agreeing:
    """chooser.Agreements: the same, whatever drafts read."""

    share: float

    @property
    def settled(self) -> bool:
        """See Agreements."""
        return True

    def of(self, reads: DraftReads, context: float) -> float:
        """See Agreements."""
        return self.share


def no_time() -> Moment:
    """A clock by which nothing can be checked."""
    return Moment(0.0, 0)


def non_decreasing(numbers: Iterable[float]) -> bool:
    listed = list(numbers)
    return listed == sorted(listed)
