"""Memory at fixed addresses for a step of fixed shapes: what the host sends, and what lies between the ops."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, fields
from itertools import accumulate

import torch
from torch import Tensor

from sparsespec.builder.build_config import BuildConfig
from sparsespec.plugins.accept_drafts.inputs import RESULT_FIELDS
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.device.row_logprobs import RowLogprobs
from sparsespec.runtime.device.step_batch import StepMemory
from sparsespec.runtime.sampling_params import MAX_LOGPROBS
from sparsespec.runtime.scheduled_step import PageGrant, ScheduledRows, ScheduledStep


@dataclass(frozen=True)
class StepMetadata:
    """What the host sends per step, O(B): views of one int32 tensor, so that one copy brings them all."""

    row_start: Tensor  # [B + 1]
    phase: Tensor  # [B]
    draft_index: Tensor  # [B]
    score_rows: Tensor  # [B]
    score_index: Tensor  # [B]
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

    def pack(self, step: ScheduledStep) -> array[int]:
        """A step's numbers, in the order of StepMetadata."""
        of_slots = [self._empty() for _ in range(7)]
        num_rows, phase, draft_index, score_rows, score_index, num_logits, block_rows = of_slots
        phase[:] = array("i", [Phase.IDLE]) * self.num_slots
        for row in step.rows:
            slot = row.slot
            num_rows[slot], phase[slot], draft_index[slot] = row.num_rows, row.phase, row.draft_index
            num_logits[slot], block_rows[slot] = row.num_logits, row.block_rows
        for index, row in enumerate(scored_rows(step) if self.scored else ()):
            score_rows[row.slot], score_index[row.slot] = row.block_rows, index
        sent = array("i", accumulate(num_rows, initial=0))
        for numbers in (phase, draft_index, score_rows, score_index):
            sent += numbers
        sent += array("i", accumulate(num_logits, initial=0))
        return sent + block_rows + self._grants(step.page_grants)

    def _grants(self, grants: tuple[PageGrant, ...]) -> array[int]:
        places = array(
            "i", [grant.slot * self.max_pages + grant.first + n for grant in grants for n in range(len(grant.pages))]
        )
        pages = array("i", [page for grant in grants for page in grant.pages])
        assert len(pages) <= self.max_grants, (len(pages), self.max_grants)
        unused = array("i", [0]) * (self.max_grants - len(pages))
        return array("i", [len(pages)]) + places + unused + pages + unused

    def _empty(self) -> array[int]:
        return array("i", [0]) * self.num_slots


def most_grants(build: BuildConfig, num_slots: int, draft_len: int) -> int:
    """Pages that a step can add to page tables.

    Every slot may be granted a verification's rows beyond its own, and its first and last page may be begun ones.
    """
    written = build.max_num_tokens + num_slots * (draft_len + 1)
    return 2 * num_slots + -(-written // build.page_size)


def scored_rows(step: ScheduledStep) -> list[ScheduledRows]:
    """Whose blocks are scored, in the order of their scores."""
    return [row for row in step.rows if row.scored]


def _sizes(num_slots: int, max_grants: int) -> list[int]:
    longer = {"row_start": num_slots + 1, "logit_start": num_slots + 1, "num_grants": 1}
    grants = {"grant_place": max_grants, "grant_page": max_grants}
    return [{**longer, **grants}.get(field.name, num_slots) for field in fields(StepMetadata)]
