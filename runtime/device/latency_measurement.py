"""What attention takes however little it reads, by the kinds of rows in a step: measured with one or two slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial

from torch import Tensor

from sparsespec.plugins.phase import Phase
from sparsespec.runtime.cost_model import CostModel, StepLatencies
from sparsespec.runtime.device.graph_executor import GraphBatch, GraphExecutor
from sparsespec.runtime.device.slot_state import SlotState
from sparsespec.runtime.device.step_batch import StepMemory
from sparsespec.runtime.device.timing import STEPS, seconds_of
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduled_step import ScheduledRows, ScheduledStep

# Long enough that the work of a slot is divided as usual, and nothing to read beside a batch's.
_CONTEXT = 4096


def measure_latencies(executor: GraphExecutor, costs: CostModel) -> StepLatencies:
    """costs: what rows and reads take, which is taken off. Leaves slots and KV pool as they were."""
    num_slots, draft_len = executor.memory.state.draft_probs.shape[:2]
    context = min(_CONTEXT, executor.memory.state.token_ids.shape[1] - 2 * (draft_len + 2))
    borrowed = _borrowed(executor.memory)
    before = [tensor.clone() for tensor in borrowed]
    _set_up(executor.memory.state, context)
    others = range(1, min(2, num_slots))
    verify, both = _verify(0, draft_len), [_verify(slot, draft_len) for slot in range(len(others) + 1)]
    executor.execute(executor.prepare(_step(both)))  # chooses pillars, and what drafts read
    plain = _seconds(executor, [_verify(0, 0)]) - costs.plain_read(context)
    draft = _seconds(executor, [_draft(0)])
    alone = _seconds(executor, [verify]) - costs.verify_read(context)
    mixed = _seconds(executor, [verify, *(_draft(slot) for slot in others)]) - costs.verify_read(context)
    for tensor, values in zip(borrowed, before, strict=True):
        tensor.copy_(values)
    return StepLatencies(
        plain=max(0.0, plain - costs.step_row_seconds(1)),
        draft=max(0.0, draft - costs.step_row_seconds(1)),
        verify=max(0.0, alone - costs.step_row_seconds(draft_len + 1)),
        mixed=max(0.0, mixed - costs.step_row_seconds(draft_len + 1 + len(others))),
    )


def _borrowed(memory: StepMemory) -> list[Tensor]:
    """What steps of the first two slots write: their state but for draft_probs, which greedy drafts leave, and a page.

    All pages of the slots are that one, the pool's first: what is read does not matter.
    """
    by_layer = ("pillars", "draft_lse", "score_history")
    slots = [getattr(memory.state, field.name) for field in fields(SlotState) if field.name not in by_layer]
    layers = [getattr(memory.state, name) for name in by_layer]
    of_slots = [tensor[:2] for tensor in slots if tensor is not memory.state.draft_probs]
    return [*of_slots, *(tensor[:, :2] for tensor in layers), memory.kv_pool[:, 0]]


def _set_up(state: SlotState, context: int) -> None:
    """Greedy requests of so many verified tokens, which end there."""
    for tensor, value in ((state.kv_len, context), (state.end_len, context), (state.page_table, 0)):
        tensor[:2] = value
    for tensor in (state.temperature, state.recent_start, state.num_staying, state.num_moving, state.lookup_budget):
        tensor[:2] = 0
    state.token_ids[:2] = 0


def _seconds(executor: GraphExecutor, rows: Sequence[ScheduledRows]) -> float:
    """Of a step, enqueued again and again as it is; the first captures its graph."""
    batch = executor.prepare(_step(rows))
    executor.execute(batch)
    return seconds_of(partial(_execute, executor, batch), executor.memory.device) / STEPS


def _execute(executor: GraphExecutor, batch: GraphBatch) -> None:
    for _ in range(STEPS):
        executor.execute(batch)


def _step(rows: Sequence[ScheduledRows]) -> ScheduledStep:
    return ScheduledStep(0, (), (), tuple(rows))


def _verify(slot: int, num_drafts: int) -> ScheduledRows:
    return _rows(slot, Phase.VERIFY, num_drafts + 1, block_rows=num_drafts + 1, scored=num_drafts > 0)


def _draft(slot: int) -> ScheduledRows:
    return _rows(slot, Phase.DRAFT, 1, block_rows=0, scored=False)


def _rows(slot: int, phase: Phase, num_rows: int, block_rows: int, scored: bool) -> ScheduledRows:
    return ScheduledRows(
        slot=slot,
        generation=0,
        phase=phase,
        num_rows=num_rows,
        draft_index=0,
        num_logits=num_rows,
        block_rows=block_rows,
        scored=scored,
        needs=SamplingParams().needs,
    )
