"""Results of a step of fixed shapes, read a step or more later."""

from __future__ import annotations

from itertools import accumulate

from torch import Tensor

from sparsespec.plugins.accept_drafts.inputs import RESULT_FIELDS
from sparsespec.runtime.device.host_copies import HostCopies
from sparsespec.runtime.device.row_logprobs import RowLogprobs
from sparsespec.runtime.device.torch_results import BlockCounts, slot_result
from sparsespec.runtime.results import SlotResult
from sparsespec.runtime.scheduled_step import ScheduledStep

_COUNTS = len(RESULT_FIELDS)


class GraphResults:
    """executor.PendingResults of the slots whose blocks end in a step."""

    def __init__(self, step: ScheduledStep, results: Tensor, logprobs: RowLogprobs | None) -> None:
        """Of memory that another step may overwrite.

        results: as AcceptDrafts writes them, [B, fields + k + 1] int32. logprobs: of the step's rows of logits.
        """
        self._step = step
        starts = accumulate((row.num_logits for row in step.rows), initial=0)
        self._blocks = [(row, start) for row, start in zip(step.rows, starts, strict=False) if row.block_rows]
        wanted = results if self._blocks else results[:0]
        self._copies = HostCopies([wanted, *(logprobs.tensors if logprobs and self._blocks else ())])

    @property
    def step(self) -> ScheduledStep:
        """See PendingResults."""
        return self._step

    def wait(self) -> dict[int, SlotResult]:
        """See PendingResults."""
        results, *logprobs = self._copies.wait()
        told = RowLogprobs(*logprobs) if logprobs else None
        numbers = results[[row.slot for row, _ in self._blocks]].tolist()
        return {
            row.slot: slot_result(row, BlockCounts(*block[:_COUNTS]), block[_COUNTS:], told, first_row)
            for (row, first_row), block in zip(self._blocks, numbers, strict=True)
        }
