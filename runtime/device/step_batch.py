"""A scheduled step as tensors: what `prepare` makes and `execute` and `sample` read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.builder.decoder import DecoderInputs
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import LayerInputs, StepInputs
from sparsespec.runtime.device.slot_state import SlotState, pinned
from sparsespec.runtime.sampling_params import SamplingNeeds
from sparsespec.runtime.scheduled_step import ScheduledRows, ScheduledStep


@dataclass(frozen=True)
class DraftRows:
    """The step's D draft rows."""

    needs: tuple[SamplingNeeds, ...]
    slot: Tensor  # [D] int64
    draft_index: Tensor  # [D] int64
    logit: Tensor  # [D] int64: each row's place in the logits


@dataclass(frozen=True)
class BlockRows:
    """The step's S blocks that end in a token: verifications, and prompts whose last chunk this is (no drafts)."""

    rows: tuple[ScheduledRows, ...]
    slot: Tensor  # [S] int64
    first_position: Tensor  # [S] int64: position of the token that the block's first logits decide
    block_start: Tensor  # [S] int64: position of the block's first row
    num_drafts: Tensor  # [S] int64
    logits: Tensor  # [S, K + 1] int64: places in the logits, padded by repeating the last; K = most drafts


@dataclass(frozen=True)
class ChunkRows:
    """Chunks that end before their prompt does."""

    slot: Tensor  # [C] int64
    num_rows: Tensor  # [C] int32


@dataclass(frozen=True)
class StepBatch:
    """One step on the device."""

    step: ScheduledStep
    inputs: DecoderInputs[Tensor]
    drafts: DraftRows
    blocks: BlockRows
    chunks: ChunkRows


@dataclass(frozen=True)
class StepMemory:
    """Device memory that outlives a step."""

    state: SlotState
    vocab_size: int
    budget: Tensor  # [max_positions] int64: tokens per KV head that drafts read, by the verified tokens
    rope_table: Tensor  # [scored_positions, head_dim]
    kv_pool: Tensor  # [num_layers, num_pages, 2, num_kv_heads, page_size, head_dim]
    scores: Tensor  # [num_layers, max_batch_size, planes, num_kv_heads, scored_positions]; empty without scored rows
    layers: tuple[LayerInputs[Tensor], ...]  # views of the above and of state.pillars

    @property
    def device(self) -> torch.device:
        """Where the step runs."""
        return self.kv_pool.device


def make_batch(memory: StepMemory, step: ScheduledStep, scored: bool) -> StepBatch:
    """Tensors of a scheduled step; `scored`: whether the drafter wants scores. Reads no device value on the host."""
    inputs = _decoder_inputs(memory, step, scored)
    starts = _starts([row.num_logits for row in step.rows])
    placed = list(zip(step.rows, starts, strict=False))
    return StepBatch(
        step=step,
        inputs=inputs,
        drafts=_draft_rows(memory, [(row, at) for row, at in placed if row.phase == Phase.DRAFT]),
        blocks=_block_rows(memory, [(row, at) for row, at in placed if row.block_rows]),
        chunks=_chunk_rows(memory, [row for row in step.rows if not row.num_logits]),
    )


def _decoder_inputs(memory: StepMemory, step: ScheduledStep, scored: bool) -> DecoderInputs[Tensor]:
    inputs = _step_inputs(memory, step, scored)
    state, num_rows = memory.state, [row.num_rows for row in step.rows]
    slots = _longs(memory, [row.slot for row in step.rows])
    row_slot = slots.repeat_interleave(_longs(memory, num_rows), output_size=sum(num_rows))
    row = torch.arange(sum(num_rows), device=memory.device)
    position = (state.kv_len + inputs.draft_index - inputs.row_start[:-1])[row_slot] + row
    ends = _starts(num_rows)[1:]
    needed = [range(end - part.num_logits, end) for part, end in zip(step.rows, ends, strict=True)]
    return DecoderInputs(
        token_ids=state.token_ids[row_slot, position],
        logit_rows=_longs(memory, [index for part in needed for index in part]),
        step=inputs,
        layers=memory.layers,
    )


def _step_inputs(memory: StepMemory, step: ScheduledStep, scored: bool) -> StepInputs[Tensor]:
    state = memory.state
    num_slots = len(state.kv_len)
    num_rows, draft_index, score_rows = [0] * num_slots, [0] * num_slots, [0] * num_slots
    phase, score_index = [int(Phase.IDLE)] * num_slots, [0] * num_slots
    for row in step.rows:
        num_rows[row.slot], draft_index[row.slot], phase[row.slot] = row.num_rows, row.draft_index, int(row.phase)
    for index, row in enumerate(row for row in step.rows if row.scored and scored):
        score_rows[row.slot], score_index[row.slot] = row.block_rows, index
    return StepInputs(
        row_start=_ints(memory, _starts(num_rows)),
        phase=_ints(memory, phase),
        draft_index=_ints(memory, draft_index),
        score_rows=_ints(memory, score_rows),
        score_index=_ints(memory, score_index),
        kv_len=state.kv_len,
        recent_start=state.recent_start,
        num_staying=state.num_staying,
        num_moving=state.num_moving,
        lookups=state.lookups,
        num_lookups=state.num_lookups,
        page_table=state.page_table,
        rope_table=memory.rope_table,
    )


def _draft_rows(memory: StepMemory, placed: list[tuple[ScheduledRows, int]]) -> DraftRows:
    return DraftRows(
        needs=tuple(row.needs for row, _ in placed),
        slot=_longs(memory, [row.slot for row, _ in placed]),
        draft_index=_longs(memory, [row.draft_index for row, _ in placed]),
        logit=_longs(memory, [at for _, at in placed]),
    )


def _block_rows(memory: StepMemory, placed: list[tuple[ScheduledRows, int]]) -> BlockRows:
    slot = _longs(memory, [row.slot for row, _ in placed])
    kv_len = memory.state.kv_len[slot].long()
    width = max((row.num_logits for row, _ in placed), default=1)
    logits = [[at + min(index, row.num_logits - 1) for index in range(width)] for row, at in placed]
    return BlockRows(
        rows=tuple(row for row, _ in placed),
        slot=slot,
        first_position=kv_len + _longs(memory, [row.num_rows - row.num_logits + 1 for row, _ in placed]),
        block_start=kv_len + _longs(memory, [row.num_rows - row.block_rows for row, _ in placed]),
        num_drafts=_longs(memory, [row.num_logits - 1 for row, _ in placed]),
        logits=_longs(memory, [place for row in logits for place in row]).reshape(len(placed), width),
    )


def _chunk_rows(memory: StepMemory, rows: list[ScheduledRows]) -> ChunkRows:
    return ChunkRows(
        slot=_longs(memory, [row.slot for row in rows]),
        num_rows=_ints(memory, [row.num_rows for row in rows]),
    )


def _starts(counts: Sequence[int]) -> list[int]:
    """[n + 1] where each of n runs starts, and where the last ends."""
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return starts


def sent(values: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the device, without the host waiting."""
    return pinned(values, dtype, device).to(device, non_blocking=True)


def _ints(memory: StepMemory, values: list[int]) -> Tensor:
    return sent(values, torch.int32, memory.device)


def _longs(memory: StepMemory, values: list[int]) -> Tensor:
    return sent(values, torch.int64, memory.device)
