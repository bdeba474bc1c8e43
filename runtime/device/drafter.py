"""Who drafts, and what draft rows read: one seam for every way to do it. And commit, which moves the lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import ScorePlanes
from sparsespec.plugins.pillar_select.inputs import SelectInputs
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.lookup import find_lookups
from sparsespec.runtime.device.ngram import NgramRule, propose
from sparsespec.runtime.device.selection import (
    AsScored,
    RankedBlocks,
    ScoredBlocks,
    SelectionRule,
    make_selection_rule,
)
from sparsespec.runtime.device.slot_state import SlotState
from sparsespec.runtime.device.step_batch import BlockRows, DraftRows, StepBatch, StepMemory, sent

Select = Callable[[SelectInputs[Tensor]], None]


@dataclass(frozen=True)
class BudgetSplit:
    """Tokens per KV head that a draft row may read in each way, [S] int64 each."""

    staying: Tensor  # pillars
    recent: Tensor  # the newest verified tokens before the last block
    moving: Tensor  # pillars
    lookups: Tensor


@dataclass(frozen=True)
class EndedBlocks:
    """Blocks of a step of fixed shapes, whose lengths are committed."""

    block_rows: Tensor  # [B] int32: 0 where no block ended
    scored_slot: Tensor  # [S] int32: see SelectInputs, also for moving_shift
    moving_shift: Tensor  # [S] int32


@dataclass(frozen=True)
class DrafterNeeds:
    """What a drafter needs of the rest of the device side."""

    score_planes: ScorePlanes = "none"  # what `plan` reads of the verified rows' scores
    max_lookups: int = 0
    score_history: bool = False
    oracle: bool = False  # draft rows choose their own pillars: plugins.pillar_attention.oracle
    fixed_shapes: bool = True  # whether there is `plan_slots`


@dataclass(frozen=True)
class Drafter:
    """Prepares the coming drafts, or makes them. As it stands, it does neither: plain decoding."""

    config: SpeculationConfig

    @property
    def needs(self) -> DrafterNeeds:
        """What to allocate, and who attends."""
        return DrafterNeeds()

    def split(self, budget: Tensor) -> BudgetSplit:
        """How budget [S] is spent."""
        nothing = torch.zeros_like(budget)
        return BudgetSplit(nothing, nothing, nothing, nothing)

    def plan(self, memory: StepMemory, batch: StepBatch, select: Select) -> None:
        """After a commit: write the pillars, or the drafts, of the batch's blocks; lengths are those to come.

        A plain request's block is not scored, and whatever is written for it is not read.
        """

    def plan_slots(self, memory: StepMemory, ended: EndedBlocks, select: Select) -> None:
        """`plan` in a step of fixed shapes: over all slots, of which some blocks have ended."""

    def look_up(self, state: SlotState, drafts: DraftRows) -> None:
        """Before draft rows run: write what their own tokens call for."""


@dataclass(frozen=True)
class PillarDrafter(Drafter):
    """Tokens that the last verified rows attended to (pillars), the newest ones, and those that new tokens call for.

    Reads per selection: see the rule. Reads per draft row, once for all layers: the slot's token ids. Keeps per slot:
    the pillars, and what the rule keeps.
    """

    rule: SelectionRule

    @property
    def needs(self) -> DrafterNeeds:
        """See Drafter."""
        return DrafterNeeds(
            score_planes=self.rule.score_planes,
            max_lookups=self.config.max_lookups,
            score_history=self.rule.keeps_history,
            fixed_shapes=isinstance(self.rule, AsScored),
        )

    def split(self, budget: Tensor) -> BudgetSplit:
        """Shares are rounded down, recent_share first; pillars that stay get the rest."""
        recent = _share(budget, self.config.recent_share)
        moving = torch.minimum(_share(budget, self.config.moving_share), budget - recent)
        lookups = (budget - recent - moving).clamp(max=self.config.max_lookups)
        return BudgetSplit(budget - recent - moving - lookups, recent, moving, lookups)

    def plan(self, memory: StepMemory, batch: StepBatch, select: Select) -> None:
        """Top scores before recent_start."""
        scored = [place for place, row in enumerate(batch.blocks.rows) if row.scored]
        if scored:
            blocks = _scored_blocks(memory, batch.blocks, scored)
            select(_select_inputs(memory.state, self.rule.rank(blocks), blocks.slot.int()))

    def plan_slots(self, memory: StepMemory, ended: EndedBlocks, select: Select) -> None:
        """Top scores before recent_start, of scores as attention left them."""
        if len(ended.scored_slot):
            select(_select_inputs(memory.state, RankedBlocks(memory.scores, ended.moving_shift), ended.scored_slot))

    def look_up(self, state: SlotState, drafts: DraftRows) -> None:
        """Positions after earlier occurrences of each row's token."""
        most = self.config.max_lookups
        if most == 0 or not drafts.needs:
            return
        slot = drafts.slot
        length = state.kv_len[slot] + drafts.draft_index + 1
        found, count = find_lookups(state.token_ids[slot], length, state.recent_start[slot], most)
        state.lookups[slot] = found
        state.num_lookups[slot] = torch.minimum(count, state.lookup_budget[slot])


@dataclass(frozen=True)
class WindowDrafter(Drafter):
    """A sliding window after the first num_sinks tokens (StreamingLLM, Xiao et al. 2023). Reads and keeps no scores."""

    def split(self, budget: Tensor) -> BudgetSplit:
        """Everything but the sinks is recent."""
        sinks, nothing = budget.clamp(max=self.config.num_sinks), torch.zeros_like(budget)
        return BudgetSplit(sinks, budget - sinks, nothing, nothing)

    def plan(self, memory: StepMemory, batch: StepBatch, select: Select) -> None:
        """The sinks."""
        self._write_sinks(memory.state.pillars, batch.blocks.slot)

    def plan_slots(self, memory: StepMemory, ended: EndedBlocks, select: Select) -> None:
        """The sinks, of everybody."""
        self._write_sinks(memory.state.pillars, slice(None))

    def _write_sinks(self, pillars: Tensor, slots: Tensor | slice) -> None:
        sinks = min(self.config.num_sinks, pillars.shape[-1])
        pillars[:, slots, :, :sinks] = torch.arange(sinks, dtype=torch.int32, device=pillars.device)


@dataclass(frozen=True)
class OracleDrafter(Drafter):
    """Pillars chosen anew by every draft row, by its own attention over all tokens: what no rule can beat.

    For studies: it reads every key in every draft row. The choice itself is plugins.pillar_attention.oracle.
    """

    @property
    def needs(self) -> DrafterNeeds:
        """See Drafter."""
        return DrafterNeeds(oracle=True, fixed_shapes=False)

    def split(self, budget: Tensor) -> BudgetSplit:
        """As PillarDrafter, without what a fresh choice has no need of."""
        recent, nothing = _share(budget, self.config.recent_share), torch.zeros_like(budget)
        return BudgetSplit(budget - recent, recent, nothing, nothing)


@dataclass(frozen=True)
class NgramDrafter(Drafter):
    """Drafts copied from the text itself (prompt lookup); no draft steps. Reads the slot's token ids, keeps nothing."""

    rule: NgramRule

    def plan(self, memory: StepMemory, batch: StepBatch, select: Select) -> None:
        """Write the drafts, each certain of its token."""
        state, slot = memory.state, batch.blocks.slot
        tokens = self._propose(state, slot, torch.ones_like(slot, dtype=torch.bool))
        if self.config.coupling == "rejection":
            certain = state.draft_probs.new_zeros(len(slot), *state.draft_probs.shape[1:])
            state.draft_probs[slot] = certain.scatter_(2, tokens[..., None], 1.0)

    def plan_slots(self, memory: StepMemory, ended: EndedBlocks, select: Select) -> None:
        """The drafts of the slots whose blocks ended; all others keep what they have."""
        every_slot = torch.arange(len(ended.block_rows), device=memory.device)
        tokens = self._propose(memory.state, every_slot, ended.block_rows > 0)
        if self.config.coupling == "rejection":
            memory.state.draft_probs.zero_().scatter_(2, tokens[..., None], 1.0)

    def _propose(self, state: SlotState, slot: Tensor, ended: Tensor) -> Tensor:
        """Writes drafts where blocks ended; the [S, k] tokens that now stand where drafts do."""
        known = state.kv_len[slot].long() + 1
        drafts = propose(state.token_ids[slot], known, self.rule)
        place = slot[:, None], known[:, None] + torch.arange(self.rule.k, device=slot.device)
        state.token_ids[place] = torch.where(ended[:, None], drafts.tokens, state.token_ids[place])
        state.num_drafts[slot] = torch.where(ended, drafts.num_drafts.int(), state.num_drafts[slot])
        return state.token_ids[place]


def make_drafter(config: SpeculationConfig) -> Drafter:
    """The drafter that config names."""
    if config.drafter == "pillar":
        return PillarDrafter(config, make_selection_rule(config))
    if config.drafter == "oracle":
        return OracleDrafter(config)
    if config.drafter == "ngram":
        return NgramDrafter(config, NgramRule(config.k, config.max_ngram, config.min_ngram))
    if config.drafter == "window":
        return WindowDrafter(config)
    return Drafter(config)


@dataclass(frozen=True)
class VerifiedBlocks:
    """S blocks once it is known how much of them stands; [S] each."""

    slot: Tensor
    block_start: Tensor  # position of the block's first row
    kv_len: Tensor  # verified tokens from now on


def commit(state: SlotState, blocks: VerifiedBlocks, split: BudgetSplit) -> None:
    """Move the verified lengths, and set what the coming drafts read around each block.

    Tokens from block_start on were not seen by every scored row, so they are always read: they have no fair score.
    """
    recent_start = (blocks.block_start - split.recent).clamp(min=0)
    state.kv_len[blocks.slot] = blocks.kv_len.int()
    state.recent_start[blocks.slot] = recent_start.int()
    state.num_staying[blocks.slot] = torch.minimum(split.staying, recent_start).int()
    state.num_moving[blocks.slot] = torch.minimum(split.moving, recent_start).int()
    state.lookup_budget[blocks.slot] = torch.minimum(split.lookups, recent_start).int()


def _share(budget: Tensor, share: float) -> Tensor:
    return (budget.double() * share).floor().long()


def _scored_blocks(memory: StepMemory, blocks: BlockRows, scored: list[int]) -> ScoredBlocks:
    device = blocks.slot.device
    place = sent(scored, torch.int64, device)
    slot = blocks.slot[place]
    rows = [blocks.rows[index] for index in scored]
    kv_len = memory.state.kv_len[slot]
    return ScoredBlocks(
        planes=memory.scores,
        slot=slot,
        num_rows=sent([row.block_rows for row in rows], torch.int64, device),
        last_row=kv_len - 1 - blocks.block_start[place],
        kv_len=kv_len,
        first=sent([row.phase == Phase.PREFILL for row in rows], torch.bool, device),
        history=memory.state.score_history,
    )


def _select_inputs(state: SlotState, ranked: RankedBlocks, scored_slot: Tensor) -> SelectInputs[Tensor]:
    return SelectInputs(
        scores=ranked.scores,
        scored_slot=scored_slot,
        moving_shift=ranked.moving_shift,
        recent_start=state.recent_start,
        num_staying=state.num_staying,
        num_moving=state.num_moving,
        pillars=state.pillars,
    )
