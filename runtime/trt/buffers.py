"""Memory at fixed addresses for what a step brings along and takes away, as engines and CUDA graphs want it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sparsespec.runtime.device.step_batch import StepBatch


@dataclass(frozen=True)
class StepBuffers:
    """Inputs that the host sends per step, and the logits; the first rows of each are the step's."""

    token_ids: Tensor  # [rows] int64; beyond the step, ids of former ones
    logit_rows: Tensor  # [logits] int64
    row_start: Tensor  # [B + 1] int32, and below [B] int32
    phase: Tensor
    draft_index: Tensor
    score_rows: Tensor
    score_index: Tensor
    logits: Tensor  # [logits, vocab_size]

    def fill(self, batch: StepBatch) -> None:
        """Bring a step's inputs in, in stream order. All logit_rows are written: places beyond the step name row 0."""
        step, rows = batch.inputs.step, batch.inputs.logit_rows
        assert rows is not None
        assert step.score_index is not None
        self.token_ids[: len(batch.inputs.token_ids)] = batch.inputs.token_ids
        self.logit_rows.zero_()
        self.logit_rows[: len(rows)] = rows
        for own, given in (
            (self.row_start, step.row_start),
            (self.phase, step.phase),
            (self.draft_index, step.draft_index),
            (self.score_rows, step.score_rows),
            (self.score_index, step.score_index),
        ):
            own.copy_(given)

    def by_name(self) -> Mapping[str, Tensor]:
        """As engines call them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class BufferSizes:
    """How much a step may hold."""

    rows: int
    logits: int
    slots: int
    vocab_size: int


def make_buffers(sizes: BufferSizes, dtype: torch.dtype, device: torch.device) -> StepBuffers:
    """Zeroed; dtype is that of the logits."""

    def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return StepBuffers(
        token_ids=zeros(sizes.rows, dtype=torch.int64),
        logit_rows=zeros(sizes.logits, dtype=torch.int64),
        row_start=zeros(sizes.slots + 1),
        phase=zeros(sizes.slots),
        draft_index=zeros(sizes.slots),
        score_rows=zeros(sizes.slots),
        score_index=zeros(sizes.slots),
        logits=zeros(sizes.logits, sizes.vocab_size, dtype=dtype),
    )
