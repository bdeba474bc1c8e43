"""Results of a step of varying shapes, and how a block's numbers become a SlotResult."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sparsespec.runtime.device.host_copies import HostCopies
from sparsespec.runtime.device.row_logprobs import ListedLogprobs, RowLogprobs
from sparsespec.runtime.results import SlotResult
from sparsespec.runtime.scheduled_step import ScheduledRows, ScheduledStep


@dataclass(frozen=True)
class BlockCounts:
    """Numbers of S blocks, [S] each. Lengths are those after a block; see SlotResult."""

    num_tokens: Tensor  # that join the output
    num_drafts: Tensor
    num_accepted: Tensor
    kv_len: Tensor
    recent_start: Tensor
    num_chosen: Tensor


def packed(counts: BlockCounts) -> Tensor:
    """[S, number of fields], so that one copy brings them all."""
    return torch.stack([getattr(counts, field.name) for field in fields(counts)], dim=1)


@dataclass(frozen=True)
class BlockOutcome:
    """What S blocks of up to K drafts produced."""

    counts: Tensor  # [S, ...]: BlockCounts, packed
    tokens: Tensor  # [S, K + 1]
    logprobs: RowLogprobs | None  # of S * (K + 1) rows; None where nobody asks


class TorchResults:
    """executor.PendingResults of the blocks of a step."""

    def __init__(self, step: ScheduledStep, rows: tuple[ScheduledRows, ...], outcome: BlockOutcome) -> None:
        self._step = step
        self._rows = rows
        logprobs = outcome.logprobs
        self._copies = HostCopies([outcome.counts, outcome.tokens, *(logprobs.tensors if logprobs else ())])

    @property
    def step(self) -> ScheduledStep:
        """See PendingResults."""
        return self._step

    def wait(self) -> dict[int, SlotResult]:
        """See PendingResults."""
        counts, tokens, *logprobs = self._copies.wait()
        width, told = tokens.shape[1], listed_logprobs(self._rows, logprobs)
        blocks = zip(self._rows, counts.tolist(), tokens.tolist(), strict=True)
        return {
            row.slot: slot_result(row, numbers, block, told, index * width)
            for index, (row, numbers, block) in enumerate(blocks)
        }


def listed_logprobs(rows: Sequence[ScheduledRows], tensors: Sequence[Tensor]) -> ListedLogprobs | None:
    """RowLogprobs' tensors, if there are any, with as many alternatives as any of the rows asks for; on the host."""
    if not tensors:
        return None
    return RowLogprobs(*tensors).listed(max(row.needs.logprobs or 0 for row in rows))


def slot_result(
    row: ScheduledRows, counts: Sequence[int], tokens: Sequence[int], logprobs: ListedLogprobs | None, first_row: int
) -> SlotResult:
    """Of a block. counts: BlockCounts. tokens: no fewer than joined the output. first_row: the block's, in logprobs."""
    num_tokens, num_drafts, num_accepted, kv_len, recent_start, num_chosen = counts
    kept = tuple(tokens[:num_tokens])
    wanted = row.needs.logprobs
    told = logprobs.told(first_row, kept, wanted) if logprobs is not None and wanted is not None else ()
    return SlotResult(row.phase, kept, num_drafts, num_accepted, kv_len, recent_start, num_chosen, told)
