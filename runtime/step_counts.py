"""What a step holds, in numbers, by what the host knows when it is scheduled. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from sparsespec.plugins.phase import Phase
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.request import Request
from sparsespec.runtime.scheduled_step import ScheduledRows, ScheduledStep
from sparsespec.runtime.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What a step holds, and requests and the KV cache once it is scheduled."""

    prefill_rows: int
    draft_rows: int
    verify_rows: int
    slots: int  # requests that take part
    running: int
    waiting: int
    pages_used: int
    pages_free: int
    host_pages_used: int
    pages_out: int  # that the step copies to host memory
    pages_in: int
    kv_tokens: int  # verified tokens of running requests, as far as results have been read
    kv_bytes_read: int  # at most, over all layers: see KvTraffic
    kv_bytes_written: int  # exact: each row's own token


@dataclass(frozen=True)
class KvTraffic:
    """What the rows of a step read of the KV cache, in tokens per layer and KV head: an upper bound.

    Rows of a block read a token once, all together. Results are late, so lengths are the most that the steps in flight
    can make of them; a draft reads its budget, the last block and its cycle's drafts, as if nothing were chosen twice.
    """

    speculation: SpeculationConfig

    def tokens_read(self, row: ScheduledRows, request: Request) -> int:
        """By a row of a step that has just been scheduled."""
        if row.phase is Phase.PREFILL:
            return request.num_prefilled
        if row.phase is Phase.DRAFT:
            return self._before_drafts(request) + row.draft_index + 1
        return min(request.scheduled_kv_len, request.spec.end_len + row.num_rows)

    def _before_drafts(self, request: Request) -> int:
        length = request.kv_len_upper
        if self.speculation.drafter == "oracle":
            return length  # it reads everything to choose
        return min(length, self.speculation.budget(length) + request.spec.draft_len + 1)


class StepCounter:
    """Counts steps that a scheduler has just made."""

    def __init__(self, scheduler: Scheduler, speculation: SpeculationConfig, kv_bytes_per_token: int) -> None:
        """kv_bytes_per_token: keys and values of all layers and KV heads."""
        self._scheduler = scheduler
        self._traffic = KvTraffic(speculation)
        self._kv_bytes_per_token = kv_bytes_per_token

    def count(self, step: ScheduledStep) -> StepCounts:
        """The step is the scheduler's latest."""
        scheduler, kv_cache = self._scheduler, self._scheduler.kv_cache
        rows = [0] * len(Phase)
        tokens_read = 0
        for row in step.rows:
            rows[row.phase] += row.num_rows
            tokens_read += self._traffic.tokens_read(row, scheduler.request_in(row.slot))
        return StepCounts(
            prefill_rows=rows[Phase.PREFILL],
            draft_rows=rows[Phase.DRAFT],
            verify_rows=rows[Phase.VERIFY],
            slots=len(step.rows),
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            pages_used=kv_cache.num_pages - kv_cache.num_free_pages,
            pages_free=kv_cache.num_free_pages,
            host_pages_used=kv_cache.num_used_host_pages,
            pages_out=sum(len(move.pages) for move in step.offloads),
            pages_in=sum(len(move.pages) for move in step.restores),
            kv_tokens=scheduler.num_kv_tokens,
            kv_bytes_read=tokens_read * self._kv_bytes_per_token,
            kv_bytes_written=sum(rows) * self._kv_bytes_per_token,
        )
