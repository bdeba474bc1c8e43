"""Results of a step of fixed shapes, read a step or more later."""

from __future__ import annotations

from itertools import accumulate

from torch import Tensor

from sparsespec.plugins.accept_drafts.inputs import RESULT_FIELDS
from sparsespec.runtime.device.host_copies import HostCopies
from sparsespec.runtime.device.row_logprobs import RowLogprobs
from sparsespec.runtime.device.torch_results import listed_logprobs, slot_result
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
        self._blocks = [row for row in step.landing if row.block_rows]
        wanted = results if self._blocks else results[:0]
        self._copies = HostCopies([wanted, *(logprobs.tensors if logprobs and self._blocks else ())])

    @property
    def step(self) -> ScheduledStep:
        """See PendingResults."""
        return self._step

    def wait(self) -> dict[int, SlotResult]:
        """See PendingResults."""
        results, *logprobs = self._copies.wait()
        if not self._blocks:
            return {}
        told = listed_logprobs(self._blocks, logprobs)
        first_row = self._first_rows() if logprobs else {}
        numbers = results.numpy()[[row.slot for row in self._blocks]]
        counts = zip(*numbers[:, :_COUNTS].T.tolist(), strict=True)
        blocks = zip(self._blocks, counts, numbers[:, _COUNTS:].tolist(), strict=True)
        return {
            row.slot: slot_result(row, counted, tokens, told, first_row.get(row.slot, 0))
            for row, counted, tokens in blocks
        }

    def _first_rows(self) -> dict[int, int]:
        """Of each slot's rows of logits, by slot."""
        starts = accumulate((row.num_logits for row in self._step.rows), initial=0)
        return {row.slot: start for row, start in zip(self._step.rows, starts, strict=False)}
