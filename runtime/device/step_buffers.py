"""Memory at fixed addresses for a step of fixed shapes: what the host sends, and what lies between the ops."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsespec.builder.build_config import BuildConfig
from sparsespec.plugins.accept_drafts.inputs import RESULT_FIELDS
from sparsespec.plugins.phase import IDLE
from sparsespec.runtime.device.row_logprobs import RowLogprobs
from sparsespec.runtime.device.step_batch import StepMemory
from sparsespec.runtime.sampling_params import MAX_LOGPROBS
from sparsespec.runtime.scheduled_step import PACKED_FIELDS, PageGrant, ScheduledRows, ScheduledStep

# As ScheduledRows.packed: PACKED_FIELDS of a slot that takes no part.
_IDLE_SLOT = array("i", [IDLE if name == "phase" else 0 for name in PACKED_FIELDS]).tobytes()


@dataclass(frozen=True)
class StepMetadata:
    """What the host sends per step, O(B): views of one int32 tensor, so that one copy brings them all."""

    row_start: Tensor  # [B + 1]
    phase: Tensor  # [B]
    draft_index: Tensor  # [B]
    score_rows: Tensor  # [B]
    score_index: Tensor  # [B]: among those that are scored, in slot order
    logit_start: Tensor  # [B + 1]
    block_rows: Tensor  # [B]
    num_grants: Tensor  # [1]
    grant_place: Tensor  # [max_grants]
    grant_page: Tensor  # [max_grants]


@dataclass(frozen=True)
class StepBuffers:
    """Everything of a step whose address a CUDA graph knows; int32 where nothing else is said."""

    sent: Tensor  # all of `metadata`
    metadata: StepMetadata
    row_token: Tensor  # [most rows] int64, and below: see StepRowsInputs
    logit_rows: Tensor  # [most rows] int64
    logit_slot: Tensor
    logit_position: Tensor
    scored_slot: Tensor  # [max_scored]
    moving_shift: Tensor  # [max_scored]
    results: Tensor  # [B, fields + k + 1]: see AcceptDraftsInputs
    logprobs: RowLogprobs  # of [most rows]


@dataclass(frozen=True)
class BufferLimits:
    """Most of a step."""

    num_rows: int
    num_grants: int  # pages added to page tables


def make_step_buffers(memory: StepMemory, limits: BufferLimits) -> StepBuffers:
    """For the slots of `memory`."""
    state, device = memory.state, memory.device
    num_slots, draft_len = state.draft_probs.shape[:2]
    num_top = min(MAX_LOGPROBS, memory.vocab_size)
    sizes = _sizes(num_slots, limits.num_grants)
    sent = torch.zeros(sum(sizes), dtype=torch.int32, device=device)

    def numbers(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return StepBuffers(
        sent=sent,
        metadata=StepMetadata(*sent.split(sizes)),
        row_token=numbers(limits.num_rows, dtype=torch.int64),
        logit_rows=numbers(limits.num_rows, dtype=torch.int64),
        logit_slot=numbers(limits.num_rows),
        logit_position=numbers(limits.num_rows),
        scored_slot=numbers(memory.scores.shape[1]),
        moving_shift=numbers(memory.scores.shape[1]),
        results=numbers(num_slots, len(RESULT_FIELDS) + draft_len + 1),
        logprobs=RowLogprobs(
            values=numbers(limits.num_rows, num_top + 1, dtype=state.temperature.dtype),
            top_ids=numbers(limits.num_rows, num_top, dtype=torch.int64),
        ),
    )


@dataclass(frozen=True)
class HostMetadata:
    """StepMetadata on the host, of num_slots slots and at most max_grants pages."""

    num_slots: int
    max_grants: int
    max_pages: int  # of a slot
    scored: bool  # whether the drafter wants scores

    def pack(self, step: ScheduledStep) -> NDArray[np.int32]:
        """A step's numbers, in the order of StepMetadata."""
        columns = self._columns(step.rows)
        _, _, scored, phase, draft_index, block_rows = columns
        if not self.scored:
            scored[:] = 0
        row_start, logit_start, num_before = _starts(columns[:3])
        score_index = num_before[:-1] * scored
        of_slots = (row_start, phase, draft_index, block_rows * scored, score_index, logit_start, block_rows)
        return np.concatenate((*of_slots, self._grants(step.page_grants)))

    def _columns(self, rows: tuple[ScheduledRows, ...]) -> NDArray[np.int32]:
        """[PACKED_FIELDS, B]."""
        of_slots = [_IDLE_SLOT] * self.num_slots
        for row in rows:
            of_slots[row.slot] = row.packed
        numbers = np.frombuffer(bytearray().join(of_slots), dtype=np.int32)
        columns: NDArray[np.int32] = numbers.reshape(self.num_slots, len(PACKED_FIELDS)).T
        return columns

    def _grants(self, grants: tuple[PageGrant, ...]) -> NDArray[np.int32]:
        """The last three of StepMetadata."""
        pages = [page for grant in grants for page in grant.pages]
        assert len(pages) <= self.max_grants, (len(pages), self.max_grants)
        sent = np.zeros(1 + 2 * self.max_grants, dtype=np.int32)
        sent[0] = len(pages)
        sent[1 : 1 + len(pages)] = [
            grant.slot * self.max_pages + grant.first + n for grant in grants for n in range(len(grant.pages))
        ]
        sent[1 + self.max_grants :][: len(pages)] = pages
        return sent


def _starts(counts: NDArray[np.int32]) -> NDArray[np.int32]:
    """[n, B + 1] of counts [n, B]: sums of those before each, and of all."""
    starts = np.zeros((len(counts), counts.shape[1] + 1), dtype=np.int32)
    counts.cumsum(axis=1, out=starts[:, 1:])
    return starts


def most_grants(build: BuildConfig, num_slots: int, draft_len: int) -> int:
    """Pages that a step can add to page tables.

    Every slot may be granted a verification's rows beyond its own, and its first and last page may be begun ones.
    """
    written = build.max_num_tokens + num_slots * (draft_len + 1)
    return 2 * num_slots + -(-written // build.page_size)


def _sizes(num_slots: int, max_grants: int) -> list[int]:
    longer = {"row_start": num_slots + 1, "logit_start": num_slots + 1, "num_grants": 1}
    grants = {"grant_place": max_grants, "grant_page": max_grants}
    return [{**longer, **grants}.get(field.name, num_slots) for field in fields(StepMetadata)]
