"""Steps of fixed shapes: everything between the host's numbers and its results is one CUDA graph.

The same memory, decoder and rules as the torch executor's; what the host knows of a step is O(slots) numbers in one
copy, and what it gets back is one copy too. Penalties, minimum lengths and log-probabilities are torch's ops in graphs
of their own: whole rows of logits are gone over, for all of a step's requests as soon as one wants it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.decoder import DecoderInputs
from sparsespec.plugins.accept_drafts.inputs import AcceptDraftsInputs
from sparsespec.plugins.pillar_attention.inputs import StepInputs
from sparsespec.plugins.sample_rows.inputs import RowStatistics, SampleRowsInputs
from sparsespec.plugins.step_rows.inputs import StepRowsInputs
from sparsespec.runtime.device.budget_tables import BudgetTables
from sparsespec.runtime.device.drafter import EndedBlocks
from sparsespec.runtime.device.executor import PendingResults
from sparsespec.runtime.device.graph_results import GraphResults
from sparsespec.runtime.device.row_logprobs import row_logprobs
from sparsespec.runtime.device.sampling import RowSampling, allowed_logits
from sparsespec.runtime.device.step_batch import StepMemory
from sparsespec.runtime.device.step_buffers import BufferLimits, HostMetadata, make_step_buffers, most_grants
from sparsespec.runtime.device.step_graphs import StepGraphs, StepShape
from sparsespec.runtime.device.step_ops import StepOps
from sparsespec.runtime.device.torch_executor import TorchExecutor
from sparsespec.runtime.scheduled_step import ScheduledStep
from sparsespec.runtime.step_sizes import logits_of, rows_of


@dataclass(frozen=True)
class GraphBatch:
    """A step whose numbers are on their way to the device. shape: None for a step without rows."""

    step: ScheduledStep
    shape: StepShape | None


class GraphExecutor:
    """executor.Executor of GraphBatch, which has no logits outside of `execute`."""

    def __init__(self, eager: TorchExecutor, step_ops: StepOps, build: BuildConfig) -> None:
        """eager: owns memory, decoder and drafter."""
        self._eager = eager
        self._step_ops = step_ops
        memory = eager.memory
        num_slots, max_pages = memory.state.page_table.shape
        grants = most_grants(build, num_slots, memory.state.draft_probs.shape[1])
        rows = max(rows_of(build.max_num_tokens), logits_of(build.max_num_tokens))
        self._buffers = make_step_buffers(memory, BufferLimits(rows, grants))
        scored = eager.drafter.needs.score_planes != "none"
        self._max_scored = len(self._buffers.scored_slot) if scored else 0
        self._host = HostMetadata(num_slots, grants, max_pages, scored)
        self._budgets = BudgetTables(memory.budget, eager.drafter)
        self._graphs = StepGraphs(memory.device)

    @property
    def graphs(self) -> StepGraphs:
        """For inspection."""
        return self._graphs

    @property
    def memory(self) -> StepMemory:
        """Device memory, for inspection."""
        return self._eager.memory

    @property
    def step_ops(self) -> StepOps:
        """The ops around the decoder."""
        return self._step_ops

    @property
    def max_rows(self) -> int:
        """Of a step."""
        return len(self._buffers.row_token)

    @property
    def max_scored(self) -> int:
        """Places for scores; 0 if the drafter wants none."""
        return self._max_scored

    @property
    def budgets(self) -> BudgetTables:
        """What drafts may read; steps say which."""
        return self._budgets

    def replace_step_ops(self, step_ops: StepOps) -> None:
        """For studies, before the first step: graphs keep what they were captured with."""
        assert self._graphs.num_captured == 0
        self._step_ops = step_ops

    @torch.inference_mode()
    def prepare(self, step: ScheduledStep) -> GraphBatch:
        """See Executor."""
        self._budgets.use(step.budget)
        self._eager.begin(step)
        if not step.rows:
            return GraphBatch(step, None)
        self._send(step)
        return GraphBatch(step, StepShape.of(step, self._max_scored))

    @torch.inference_mode()
    def execute(self, batch: GraphBatch) -> None:
        """See Executor. The step is sampled, accepted and committed as well; its logits stay inside."""
        if batch.shape is not None:
            self._graphs.run(batch.shape, self._run)

    @torch.inference_mode()
    def sample(self, batch: GraphBatch, logits: None) -> PendingResults:
        """See Executor."""
        shape, buffers = batch.shape, self._buffers
        told = buffers.logprobs.first(shape.num_logits) if shape is not None and shape.needs.logprobs else None
        return GraphResults(batch.step, buffers.results, told)

    @torch.inference_mode()
    def run_idle(self, shape: StepShape, times: int) -> None:
        """Enqueue `times` steps of a shape in which all rows are nobody's: no slot changes."""
        self._send(ScheduledStep(0, (), (), ()))  # no block ends: its budget sets nothing
        for _ in range(times):
            self._graphs.run(shape, self._run)

    def _send(self, step: ScheduledStep) -> None:
        packed = torch.from_numpy(self._host.pack(step))
        self._buffers.sent.copy_(packed.pin_memory() if self._buffers.sent.is_cuda else packed, non_blocking=True)

    def _run(self, shape: StepShape) -> None:
        """A whole step: rows, decoder, samples, acceptance, selection."""
        self._step_ops.step_rows(self._step_rows_inputs(shape))
        logits = self._eager.decoder(self._decoder_inputs(shape))
        allowed = self._allowed(shape, logits)
        statistics = self._step_ops.sample_rows(self._sample_rows_inputs(shape, allowed))
        if shape.drafts_only:
            return
        self._step_ops.accept_drafts(self._accept_inputs(allowed, statistics))
        if shape.needs.logprobs:
            self._tell_logprobs(shape, logits)
        self._eager.drafter.plan_slots(self._eager.memory, self._ended_blocks(shape), self._eager.attention_ops.select)

    def _allowed(self, shape: StepShape, logits: Tensor) -> Tensor:
        """What is sampled from; nobody's rows stand behind all positions, where they count for no slot."""
        if not (shape.needs.penalties or shape.needs.early_stops):
            return logits
        state, owner = self._eager.memory.state, self._buffers.logit_slot[: shape.num_logits].long()
        position = self._buffers.logit_position[: shape.num_logits].long()
        position = torch.where(owner < 0, state.token_ids.shape[1], position)
        return allowed_logits(logits, RowSampling.of(state, owner.clamp(min=0), position), shape.needs)

    def _tell_logprobs(self, shape: StepShape, logits: Tensor) -> None:
        """Of the tokens that stand once drafts are accepted, each at the position that its row decides."""
        buffers, rows = self._buffers, slice(shape.num_logits)
        owner, position = buffers.logit_slot[rows].long().clamp(min=0), buffers.logit_position[rows].long()
        found = row_logprobs(logits, self._eager.memory.state.token_ids[owner, position])
        for kept, tensor in zip(buffers.logprobs.first(shape.num_logits).tensors, found.tensors, strict=True):
            kept.copy_(tensor)

    def _ended_blocks(self, shape: StepShape) -> EndedBlocks:
        buffers = self._buffers
        scored = slice(shape.num_scored)
        return EndedBlocks(buffers.metadata.block_rows, buffers.scored_slot[scored], buffers.moving_shift[scored])

    def _step_rows_inputs(self, shape: StepShape) -> StepRowsInputs[Tensor]:
        state, buffers, sent = self._eager.memory.state, self._buffers, self._buffers.metadata
        return StepRowsInputs(
            row_start=sent.row_start,
            phase=sent.phase,
            draft_index=sent.draft_index,
            logit_start=sent.logit_start,
            num_grants=sent.num_grants,
            grant_place=sent.grant_place,
            grant_page=sent.grant_page,
            kv_len=state.kv_len,
            recent_start=state.recent_start,
            lookup_budget=state.lookup_budget,
            token_ids=state.token_ids,
            page_table=state.page_table,
            lookups=state.lookups,
            num_lookups=state.num_lookups,
            row_token=buffers.row_token[: shape.num_rows],
            logit_rows=buffers.logit_rows[: shape.num_logits],
            logit_slot=buffers.logit_slot[: shape.num_logits],
            logit_position=buffers.logit_position[: shape.num_logits],
            scored_slot=buffers.scored_slot,
        )

    def _decoder_inputs(self, shape: StepShape) -> DecoderInputs[Tensor]:
        memory, sent = self._eager.memory, self._buffers.metadata
        state = memory.state
        return DecoderInputs(
            token_ids=self._buffers.row_token[: shape.num_rows],
            logit_rows=None if shape.every_row else self._buffers.logit_rows[: shape.num_logits],
            step=StepInputs(
                row_start=sent.row_start,
                phase=sent.phase,
                draft_index=sent.draft_index,
                score_rows=sent.score_rows,
                score_index=sent.score_index,
                kv_len=state.kv_len,
                recent_start=state.recent_start,
                num_staying=state.num_staying,
                num_moving=state.num_moving,
                lookups=state.lookups,
                num_lookups=state.num_lookups,
                page_table=state.page_table,
                rope_table=memory.rope_table,
            ),
            layers=memory.layers,
        )

    @property
    def _draft_probs(self) -> Tensor | None:
        rejection = self._eager.drafter.config.coupling == "rejection"
        return self._eager.memory.state.draft_probs if rejection else None

    def _sample_rows_inputs(self, shape: StepShape, logits: Tensor) -> SampleRowsInputs[Tensor]:
        state, buffers, sent = self._eager.memory.state, self._buffers, self._buffers.metadata
        return SampleRowsInputs(
            logits=logits,
            logit_slot=buffers.logit_slot[: shape.num_logits],
            logit_position=buffers.logit_position[: shape.num_logits],
            phase=sent.phase,
            draft_index=sent.draft_index,
            temperature=state.temperature,
            min_p=state.min_p,
            top_k=state.top_k,
            top_p=state.top_p,
            seed=state.seed,
            draft_probs=self._draft_probs,
            token_ids=state.token_ids,
        )

    def _accept_inputs(self, logits: Tensor, statistics: RowStatistics[Tensor]) -> AcceptDraftsInputs[Tensor]:
        state, buffers, sent = self._eager.memory.state, self._buffers, self._buffers.metadata
        return AcceptDraftsInputs(
            logits=logits,
            row_max=statistics.row_max,
            row_sum=statistics.row_sum,
            row_token=statistics.row_token,
            row_cut_logit=statistics.row_cut_logit,
            row_cut_token=statistics.row_cut_token,
            draft_probs=self._draft_probs,
            row_start=sent.row_start,
            phase=sent.phase,
            logit_start=sent.logit_start,
            block_rows=sent.block_rows,
            score_rows=sent.score_rows,
            score_index=sent.score_index,
            num_drafts=state.num_drafts,
            temperature=state.temperature,
            seed=state.seed,
            end_len=state.end_len,
            budget_split=self._budgets.split,
            token_ids=state.token_ids,
            kv_len=state.kv_len,
            recent_start=state.recent_start,
            num_staying=state.num_staying,
            num_moving=state.num_moving,
            lookup_budget=state.lookup_budget,
            scored_slot=buffers.scored_slot,
            moving_shift=buffers.moving_shift,
            results=buffers.results,
        )
