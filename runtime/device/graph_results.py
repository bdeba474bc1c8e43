"""Results of a step of fixed shapes on their way to the host: one copy in pinned memory, read a step or more later."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsespec.plugins.accept_drafts.inputs import RESULT_FIELDS
from sparsespec.runtime.device.torch_results import BlockCounts
from sparsespec.runtime.results import SlotResult
from sparsespec.runtime.scheduled_step import ScheduledRows, ScheduledStep


class GraphResults:
    """executor.PendingResults of the slots whose blocks end in a step."""

    def __init__(self, step: ScheduledStep, results: Tensor) -> None:
        """results: as AcceptDrafts writes them, [B, fields + k + 1] int32; another step may overwrite them."""
        self._step = step
        self._rows = [row for row in step.rows if row.block_rows]
        wanted = results if self._rows else results[:0]
        self._host = torch.empty(wanted.shape, dtype=results.dtype, pin_memory=results.is_cuda)
        self._host.copy_(wanted, non_blocking=True)
        self._event = torch.cuda.Event() if results.is_cuda else None
        if self._event:
            self._event.record(torch.cuda.current_stream(results.device))

    @property
    def step(self) -> ScheduledStep:
        """See PendingResults."""
        return self._step

    def wait(self) -> dict[int, SlotResult]:
        """See PendingResults."""
        if self._event:
            self._event.synchronize()
        told = self._host[[row.slot for row in self._rows]].tolist()
        return {row.slot: _slot_result(row, numbers) for row, numbers in zip(self._rows, told, strict=True)}


def _slot_result(row: ScheduledRows, numbers: list[int]) -> SlotResult:
    counts, tokens = BlockCounts(*numbers[: len(RESULT_FIELDS)]), numbers[len(RESULT_FIELDS) :]
    return SlotResult(
        phase=row.phase,
        tokens=tuple(tokens[: counts.num_tokens]),
        num_drafts=counts.num_drafts,
        num_accepted=counts.num_accepted,
        kv_len=counts.kv_len,
        recent_start=counts.recent_start,
        num_chosen=counts.num_chosen,
        logprobs=(),
    )
