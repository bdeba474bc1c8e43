"""The embedded default: the decoder in torch, on the CPU or a GPU; the numerical oracle for every other executor."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparsespec.builder.decoder import Decoder, attention_params
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.errors import InputError
from sparsespec.plugins.pillar_attention.inputs import LayerInputs, num_score_planes
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.acceptance import Block, count_accepted, next_token
from sparsespec.runtime.device.attention_choice import choose_attention, choose_decoder_ops
from sparsespec.runtime.device.attention_ops import AttentionOps
from sparsespec.runtime.device.budget_tables import budget_of
from sparsespec.runtime.device.drafter import Drafter, VerifiedBlocks, commit, make_drafter
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.page_copies import PageCopies
from sparsespec.runtime.device.rng import Purpose, uniform
from sparsespec.runtime.device.row_logprobs import row_logprobs
from sparsespec.runtime.device.sampling import RowSampling, draw, probabilities, race
from sparsespec.runtime.device.slot_state import (
    SlotLimits,
    exact_dtype,
    kv_dtype,
    make_slot_state,
    score_dtype,
)
from sparsespec.runtime.device.step_batch import BlockRows, StepBatch, StepMemory, make_batch
from sparsespec.runtime.device.torch_ops import rope_table
from sparsespec.runtime.device.torch_results import BlockCounts, BlockOutcome, TorchResults, packed
from sparsespec.runtime.scheduled_step import PageGrant, ScheduledStep


class TorchExecutor:
    """executor.Executor in torch, with attention and selection by plugins or in torch as well."""

    def __init__(
        self,
        engine: EngineConfig,
        weights: dict[str, Tensor],
        speculation: SpeculationConfig,
        config: ExecutorConfig,
        kv_pool: Tensor | None = None,
    ) -> None:
        """kv_pool: another executor's, of the same engine and config, to share; its own when not given.

        Raises InputError where there is no memory, or no such attention.
        """
        device = weights["embedding"].device
        self._drafter = make_drafter(speculation)
        self._ops = choose_attention(config, engine, self._drafter, device)
        params = replace(
            attention_params(engine.model, engine.build.page_size),
            score_planes=self._drafter.needs.score_planes,
            score_normalizer=speculation.score_normalizer,
        )
        ops = choose_decoder_ops(self._ops, engine.model, device)
        self._decoder: Decoder[Tensor] = Decoder(ops, engine.model, params, weights)
        self._memory = make_memory(engine, self._drafter, config, device, kv_pool)
        self._coupled = speculation.coupling == "gumbel"
        self._copies = PageCopies(self._memory.kv_pool, config.num_host_pages) if config.num_host_pages else None

    @property
    def memory(self) -> StepMemory:
        """Device memory, for inspection."""
        return self._memory

    @property
    def decoder(self) -> Decoder[Tensor]:
        """The network, over this executor's weights and attention."""
        return self._decoder

    @property
    def drafter(self) -> Drafter:
        """Who drafts."""
        return self._drafter

    @property
    def attention_ops(self) -> AttentionOps:
        """Who does the project's own ops."""
        return self._ops

    def begin(self, step: ScheduledStep) -> None:
        """The first part of `prepare`: prompts that are admitted, and pages that move to host memory or back."""
        for admission in step.admissions:
            self._memory.state.admit(admission.slot, admission.spec)
        if self._copies:
            self._copies.enqueue(step)
        for move in step.restores:
            self._memory.state.grant(PageGrant(move.slot, 0, move.pages))

    @torch.inference_mode()
    def prepare(self, step: ScheduledStep) -> StepBatch:
        """See Executor."""
        self.begin(step)
        for grant in step.page_grants:
            self._memory.state.grant(grant)
        batch = make_batch(self._memory, step, scored=self._drafter.needs.score_planes != "none")
        self._drafter.look_up(self._memory.state, batch.drafts)
        return batch

    @torch.inference_mode()
    def execute(self, batch: StepBatch) -> Tensor:
        """See Executor. Logits [num_logits, vocab_size]."""
        return self._decoder(batch.inputs)

    @torch.inference_mode()
    def sample(self, batch: StepBatch, logits: Tensor) -> TorchResults:
        """See Executor."""
        self._draw_drafts(batch, logits)
        return self.judge(batch, logits, self.verified_block(batch.blocks, logits))

    @torch.inference_mode()
    def judge(self, batch: StepBatch, logits: Tensor, block: Block) -> TorchResults:
        """The second half of `sample`: accept, commit, and plan the coming drafts."""
        num_accepted = self._accept(batch.blocks, block)
        num_tokens = self._commit(batch, num_accepted)
        counts = self._counts(batch.blocks, num_tokens, block.num_drafts, num_accepted)
        outcome = self._outcome(batch.blocks, logits, counts)
        self._drafter.plan(self._memory, batch, self._ops.select)
        return TorchResults(batch.step, batch.blocks.rows, outcome)

    def _draw_drafts(self, batch: StepBatch, logits: Tensor) -> None:
        state, drafts = self._memory.state, batch.drafts
        position = state.kv_len[drafts.slot] + drafts.draft_index + 1
        rows = RowSampling.of(state, drafts.slot, position)
        distribution = probabilities(logits[drafts.logit], rows, drafts.needs)
        if self._coupled:
            state.token_ids[drafts.slot, position] = race(distribution, rows.seed, position.long())
            return
        number = uniform(rows.seed, position.long(), Purpose.DRAFT + drafts.draft_index)
        state.draft_probs[drafts.slot, drafts.draft_index] = distribution
        state.token_ids[drafts.slot, position] = draw(distribution, number)

    def verified_block(self, blocks: BlockRows, logits: Tensor) -> Block:
        """The drafts of each block, and what the model thinks of them.

        Coupled ones are certain of their tokens, and so is the model: as when greedy, of the token that it draws.
        """
        state = self._memory.state
        num_blocks, width = blocks.logits.shape
        index = torch.arange(width, device=logits.device)
        position = blocks.first_position[:, None] + index
        rows = RowSampling.of(state, blocks.slot.repeat_interleave(width), position.flatten())
        target = probabilities(logits[blocks.logits.flatten()], rows, [row.needs for row in blocks.rows])
        if self._coupled:
            target = _certain(race(target, rows.seed, rows.position), target)
        drafts = state.token_ids[blocks.slot[:, None], position[:, :-1]]
        return Block(
            drafts=drafts,
            num_drafts=torch.minimum(blocks.num_drafts, state.num_drafts[blocks.slot]),
            draft_probs=self._draft_probs(blocks.slot, drafts),
            target_probs=target.unflatten(0, (num_blocks, width)),
        )

    def _draft_probs(self, slot: Tensor, drafts: Tensor) -> Tensor:
        """[S, K, V] of drafts [S, K]; greedy ones are certain, whoever drafted them and wrote nothing."""
        state = self._memory.state
        if self._coupled:
            return _certain(drafts, state.draft_probs.new_empty(*drafts.shape, self._memory.vocab_size))
        stored = state.draft_probs[slot, : drafts.shape[1]]
        greedy = (state.temperature[slot] == 0)[:, None, None]
        return torch.where(greedy, _certain(drafts, stored), stored)

    def _accept(self, blocks: BlockRows, block: Block) -> Tensor:
        """Accept drafts and write the token after them; returns the [S] accepted counts."""
        state = self._memory.state
        seed = state.seed[blocks.slot]
        position = blocks.first_position[:, None] + torch.arange(block.drafts.shape[1], device=seed.device)
        purpose = torch.full_like(position, Purpose.ACCEPT)
        num_accepted = count_accepted(block, uniform(seed[:, None], position, purpose))
        after = blocks.first_position + num_accepted
        number = uniform(seed, after, torch.full_like(after, Purpose.TARGET))
        state.token_ids[blocks.slot, after] = next_token(block, num_accepted, number)
        return num_accepted

    def _commit(self, batch: StepBatch, num_accepted: Tensor) -> Tensor:
        """Move the verified lengths; returns the [S] tokens each block adds to its output."""
        state, blocks = self._memory.state, batch.blocks
        state.kv_len[batch.chunks.slot] += batch.chunks.num_rows
        before_token = blocks.first_position - 1  # kv_len when all before the first new token is verified
        num_tokens = torch.minimum(num_accepted + 1, state.end_len[blocks.slot] - before_token)
        kv_len = before_token + num_tokens
        split = self._drafter.split(self._memory.budget[kv_len])
        commit(state, VerifiedBlocks(blocks.slot, blocks.block_start, kv_len), split)
        return num_tokens

    def _outcome(self, blocks: BlockRows, logits: Tensor, counts: BlockCounts) -> BlockOutcome:
        state = self._memory.state
        index = torch.arange(blocks.logits.shape[1], device=logits.device)
        tokens = state.token_ids[blocks.slot[:, None], blocks.first_position[:, None] + index]
        asked = any(row.needs.logprobs is not None for row in blocks.rows)
        logprobs = row_logprobs(logits[blocks.logits.flatten()], tokens.flatten()) if asked else None
        return BlockOutcome(packed(counts), tokens, logprobs)

    def _counts(self, blocks: BlockRows, num_tokens: Tensor, num_drafts: Tensor, num_accepted: Tensor) -> BlockCounts:
        state, slot = self._memory.state, blocks.slot
        recent_start = state.recent_start[slot]
        chosen = state.num_staying[slot] + state.num_moving[slot] + state.lookup_budget[slot]
        return BlockCounts(
            num_tokens=num_tokens,
            num_drafts=num_drafts,
            num_accepted=num_accepted,
            kv_len=state.kv_len[slot],
            recent_start=recent_start,
            num_chosen=torch.minimum(chosen, recent_start),
        )


def _certain(tokens: Tensor, like: Tensor) -> Tensor:
    """One-hot distributions [..., V] of tokens [...], of the shape and type of `like`."""
    return torch.zeros_like(like).scatter_(-1, tokens[..., None], 1.0)


def make_memory(
    engine: EngineConfig,
    drafter: Drafter,
    config: ExecutorConfig,
    device: torch.device,
    kv_pool: Tensor | None = None,
) -> StepMemory:
    """Allocate what outlives a step. Raises InputError where there is no room for it."""
    model, build = engine.model, engine.build
    positions = build.scored_positions
    needs, draft_len = drafter.needs, drafter.config.draft_len
    pool = (model.num_layers, config.num_pages, 2, model.num_kv_heads, build.page_size, model.head_dim)
    planes = num_score_planes(needs.score_planes, draft_len + 1)
    scores_shape = (model.num_layers, config.max_batch_size if planes else 0, planes, model.num_kv_heads, positions)
    slots = SlotLimits(
        config.max_batch_size,
        draft_len,
        needs.max_lookups,
        needs.score_history,
        draft_probs=drafter.config.coupling == "rejection",
    )
    try:
        state = make_slot_state(model, build, slots, device)
        if kv_pool is None:
            kv_pool = torch.zeros(pool, dtype=kv_dtype(build), device=device)
        scores = torch.zeros(scores_shape, dtype=score_dtype(build), device=device)
        rope = rope_table(model, positions, exact_dtype(build)).to(device)
    except RuntimeError as error:  # torch's word for no memory, on either device
        size = config.num_pages * build.page_size * model.kv_bytes_per_token(build.kv_element_size)
        raise InputError(
            f"no memory on {device} for {config.max_batch_size} slots and a KV cache of {size / 1e9:.1f} GB; lower "
            f"max_batch_size or max_tokens_in_paged_kv_cache ({error})"
        ) from error
    return StepMemory(
        state=state,
        vocab_size=model.vocab_size,
        budget=budget_of(drafter.config, build.max_positions).to(device),
        rope_table=rope,
        kv_pool=kv_pool,
        scores=scores,
        layers=tuple(
            LayerInputs(*parts) for parts in zip(kv_pool, state.draft_lse, state.pillars, scores, strict=True)
        ),
    )
