"""What a step costs and how many tokens it brings: a small model over a few measured numbers. No torch.

A step takes the time of its rows (products, sampling: measured, by their number), what attention takes however little
there is to read (measured, by the kinds of rows), and the KV cache that it reads, at the bandwidth of each kind of
read. Drafts agree with the model independently, with one probability.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

from sparsespec.runtime.config import Policy
from sparsespec.runtime.cycles import Load
from sparsespec.runtime.step_sizes import rows_of

Kind = Literal["plain", "unified", "lockstep"]


@dataclass(frozen=True)
class DraftReads:
    """What a draft step reads of a request."""

    ratio: float
    min_budget: int  # tokens

    def budget(self, context: float) -> float:
        """Tokens per layer and KV head of `context` verified ones."""
        return min(context, max(self.min_budget, self.ratio * context))

    def tokens(self, context: float, num_drafts: int) -> float:
        """Per layer and KV head: the budget, and what is newer than the last block's start, on average."""
        return self.budget(context) + num_drafts + 1


@dataclass(frozen=True)
class Way:
    """One way to decode everything; num_drafts 0 is plain decoding under either policy."""

    policy: Policy
    num_drafts: int
    reads: DraftReads

    @property
    def kind(self) -> Kind:
        """What it is one of."""
        return self.policy if self.num_drafts else "plain"

    def summary(self) -> str:
        """Its name in a table."""
        return f"{self.policy}, k {self.num_drafts}, ratio {self.reads.ratio:g}" if self.num_drafts else "plain"


def expected_accepted(agreement: float, num_drafts: int) -> float:
    """Drafts accepted of num_drafts, each of which agrees with probability `agreement`, up to the first that fails."""
    if agreement >= 1:
        return num_drafts
    return agreement * (1 - agreement**num_drafts) / (1 - agreement)


@dataclass(frozen=True)
class StepLatencies:
    """Seconds of a step beyond its rows, with next to nothing to read: what decides where batches are small."""

    plain: float
    draft: float  # of drafts alone
    verify: float  # of verifications alone, scores and selection included
    mixed: float  # of both

    @property
    def most_beyond_plain(self) -> float:
        """Of one step, whatever it has to do."""
        return max(0.0, max(self.draft, self.verify, self.mixed) - self.plain)


@dataclass(frozen=True)
class CostModel:
    """Seconds and bytes, of one engine on one device."""

    rows: tuple[tuple[int, float], ...]  # (rows, seconds) of steps that read no KV cache, ascending, at least two
    kv_bytes_per_token: int  # over all layers
    plain_bandwidth: float  # bytes/s that plain steps read the KV cache with
    verify_bandwidth: float  # verifications, of scored rows; the time to select is in it
    draft_bandwidth: float  # drafts
    latencies: StepLatencies = StepLatencies(0.0, 0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        assert len(self.rows) >= 2, self.rows

    def row_seconds(self, num_rows: float) -> float:
        """Between measured numbers on the straight line, beyond them on the nearest one's."""
        place = bisect_left(self.rows, (num_rows,))
        upper = min(max(place, 1), len(self.rows) - 1)
        (first, low), (last, high) = self.rows[upper - 1 : upper + 1]
        return low + (high - low) * (num_rows - first) / (last - first)

    def step_row_seconds(self, num_rows: int) -> float:
        """Of one step, padding included; row_seconds is for means over steps."""
        return self.row_seconds(rows_of(num_rows))

    def plain_read(self, context: float) -> float:
        """Seconds that one request's plain step reads."""
        return context * self.kv_bytes_per_token / self.plain_bandwidth

    def verify_read(self, context: float) -> float:
        """Seconds that one request's verification reads."""
        return context * self.kv_bytes_per_token / self.verify_bandwidth

    def draft_read(self, context: float, num_drafts: int, reads: DraftReads) -> float:
        """Seconds that one request's draft step reads."""
        return reads.tokens(context, num_drafts) * self.kv_bytes_per_token / self.draft_bandwidth

    def plain_speed(self, load: Load) -> float:
        """Tokens per second of plain decoding."""
        return load.num_requests / self.plain_seconds(load)

    def plain_seconds(self, load: Load) -> float:
        """Of a plain step."""
        reads = load.num_requests * self.plain_read(load.context)
        return self.row_seconds(load.num_requests) + self.latencies.plain + reads + self.prompt_seconds(load)

    def prompt_seconds(self, load: Load) -> float:
        """Of a step, for the products of prompts in it; a step that brings fewer tokens takes as long for them."""
        return self.row_seconds(load.num_requests + load.prompt_rows) - self.row_seconds(load.num_requests)

    def speed(self, load: Load, way: Way, agreement: float) -> float:
        """Tokens per second."""
        if way.num_drafts == 0:
            return self.plain_speed(load)
        tokens = load.num_requests * (1 + expected_accepted(agreement, way.num_drafts))
        return tokens / self.cycle_seconds(load, way)

    def step_seconds(self, load: Load, way: Way) -> float:
        """Of a step, on average over a cycle."""
        if way.num_drafts == 0:
            return self.plain_seconds(load)
        return self.cycle_seconds(load, way) / (way.num_drafts + 1)

    def cycle_seconds(self, load: Load, way: Way) -> float:
        """Of num_drafts + 1 steps, in which every request drafts and verifies once."""
        size, drafts = load.num_requests, way.num_drafts
        reads = drafts * self.draft_read(load.context, drafts, way.reads) + self.verify_read(load.context)
        if way.policy == "unified":
            rows = (drafts + 1) * self.row_seconds(size * (2 * drafts + 1) / (drafts + 1))
        else:
            rows = drafts * self.row_seconds(size) + self.row_seconds(size * (drafts + 1))
        return rows + self._cycle_latency(size, way) + size * reads + (drafts + 1) * self.prompt_seconds(load)

    def _cycle_latency(self, num_requests: int, way: Way) -> float:
        """Of the steps of a cycle: those of few requests do not all verify."""
        if way.policy == "lockstep" or num_requests == 1:
            return way.num_drafts * self.latencies.draft + self.latencies.verify
        num_steps = way.num_drafts + 1
        verifying = min(num_requests, num_steps)
        return verifying * self.latencies.mixed + (num_steps - verifying) * self.latencies.draft
