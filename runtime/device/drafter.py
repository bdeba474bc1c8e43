"""Who drafts, and what draft rows read: one seam for every way to do it. And commit, which moves the lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import ScorePlanes
from sparsespec.plugins.pillar_select.reference import pillar_select
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.lookup import find_lookups
from sparsespec.runtime.device.ngram import NgramRule, propose
from sparsespec.runtime.device.selection import ScoredBlocks, SelectionRule, make_selection_rule
from sparsespec.runtime.device.slot_state import SlotState
from sparsespec.runtime.device.step_batch import BlockRows, DraftRows, StepBatch


@dataclass(frozen=True)
class BudgetSplit:
    """Tokens per KV head that a draft row may read in each way, [S] int64 each."""

    staying: Tensor  # pillars
    recent: Tensor  # the newest verified tokens before the last block
    moving: Tensor  # pillars
    lookups: Tensor


@dataclass(frozen=True)
class DrafterNeeds:
    """Device memory that a drafter works in."""

    score_planes: ScorePlanes | None = None  # what `plan` reads of the verified rows' scores
    max_lookups: int = 0
    score_history: bool = False


class Drafter:
    """Prepares the coming drafts, or makes them. As it stands, it does neither: plain decoding."""

    @property
    def needs(self) -> DrafterNeeds:
        """What to allocate."""
        return DrafterNeeds()

    def split(self, budget: Tensor) -> BudgetSplit:
        """How budget [S] is spent."""
        nothing = torch.zeros_like(budget)
        return BudgetSplit(nothing, nothing, nothing, nothing)

    def plan(self, state: SlotState, scores: Tensor, batch: StepBatch) -> None:
        """After a commit: write the pillars, or the drafts, of the batch's blocks; lengths are those to come.

        A plain request's block is not scored, and whatever is written for it is not read.
        """

    def look_up(self, state: SlotState, drafts: DraftRows) -> None:
        """Before draft rows run: write what their own tokens call for."""


@dataclass(frozen=True)
class PillarDrafter(Drafter):
    """Tokens that the last verified rows attended to (pillars), the newest ones, and those that new tokens call for.

    Reads per selection: see the rule. Reads per draft row, once for all layers: the slot's token ids. Keeps per slot:
    the pillars, and what the rule keeps.
    """

    rule: SelectionRule
    recent_share: float
    moving_share: float
    max_lookups: int

    @property
    def needs(self) -> DrafterNeeds:
        """See Drafter."""
        return DrafterNeeds(self.rule.score_planes, self.max_lookups, self.rule.keeps_history)

    def split(self, budget: Tensor) -> BudgetSplit:
        """Shares are rounded down, recent_share first; pillars that stay get the rest."""
        recent = _share(budget, self.recent_share)
        moving = torch.minimum(_share(budget, self.moving_share), budget - recent)
        lookups = (budget - recent - moving).clamp(max=self.max_lookups)
        return BudgetSplit(budget - recent - moving - lookups, recent, moving, lookups)

    def plan(self, state: SlotState, scores: Tensor, batch: StepBatch) -> None:
        """Top scores before recent_start."""
        scored = [place for place, row in enumerate(batch.blocks.rows) if row.scored]
        if scored:
            blocks = _scored_blocks(state, scores, batch.blocks, scored)
            slots = [batch.blocks.rows[place].slot for place in scored]
            pillar_select(self.rule.scores(blocks), state.pillars, batch.inputs.step, slots)

    def look_up(self, state: SlotState, drafts: DraftRows) -> None:
        """Positions after earlier occurrences of each row's token."""
        if self.max_lookups == 0 or not drafts.needs:
            return
        slot = drafts.slot
        length = state.kv_len[slot] + drafts.draft_index + 1
        found, count = find_lookups(state.token_ids[slot], length, state.recent_start[slot], self.max_lookups)
        state.lookups[slot] = found
        state.num_lookups[slot] = torch.minimum(count, state.lookup_budget[slot])


@dataclass(frozen=True)
class WindowDrafter(Drafter):
    """A sliding window after the first num_sinks tokens (StreamingLLM, Xiao et al. 2023). Reads and keeps no scores."""

    num_sinks: int

    def split(self, budget: Tensor) -> BudgetSplit:
        """Everything but the sinks is recent."""
        nothing = torch.zeros_like(budget)
        return BudgetSplit(budget.clamp(max=self.num_sinks), (budget - self.num_sinks).clamp(min=0), nothing, nothing)

    def plan(self, state: SlotState, scores: Tensor, batch: StepBatch) -> None:
        """The sinks."""
        sinks = min(self.num_sinks, state.pillars.shape[-1])
        slots = batch.blocks.slot
        state.pillars[:, slots, :, :sinks] = torch.arange(sinks, dtype=torch.int32, device=slots.device)


@dataclass(frozen=True)
class OracleDrafter(Drafter):
    """Pillars chosen anew by every draft row, by its own attention over all tokens: what no rule can beat.

    For studies: it reads every key in every draft row. The choice itself is plugins.pillar_attention.oracle.
    """

    recent_share: float

    def split(self, budget: Tensor) -> BudgetSplit:
        """As PillarDrafter, without what a fresh choice has no need of."""
        recent, nothing = _share(budget, self.recent_share), torch.zeros_like(budget)
        return BudgetSplit(budget - recent, recent, nothing, nothing)


@dataclass(frozen=True)
class NgramDrafter(Drafter):
    """Drafts copied from the text itself (prompt lookup); no draft steps. Reads the slot's token ids, keeps nothing."""

    rule: NgramRule

    def plan(self, state: SlotState, scores: Tensor, batch: StepBatch) -> None:
        """Write the drafts, each certain of its token."""
        slot = batch.blocks.slot
        known = state.kv_len[slot].long() + 1
        drafts = propose(state.token_ids[slot], known, self.rule)
        index = torch.arange(self.rule.k, device=slot.device)
        state.token_ids[slot[:, None], known[:, None] + index] = drafts.tokens
        state.num_drafts[slot] = drafts.num_drafts.int()
        one_hot = state.draft_probs.new_zeros(len(slot), *state.draft_probs.shape[1:])
        state.draft_probs[slot] = one_hot.scatter_(2, drafts.tokens[..., None], 1.0)


def make_drafter(config: SpeculationConfig) -> Drafter:
    """The drafter that config names."""
    if config.drafter == "pillar":
        rule = make_selection_rule(config)
        return PillarDrafter(rule, config.recent_share, config.moving_share, config.max_lookups)
    if config.drafter == "oracle":
        return OracleDrafter(config.recent_share)
    if config.drafter == "ngram":
        return NgramDrafter(NgramRule(config.k, config.max_ngram, config.min_ngram))
    if config.drafter == "window":
        return WindowDrafter(config.num_sinks)
    return Drafter()


def commit(
    state: SlotState, slots: Tensor, kv_len: Tensor, block_start: Tensor, config: SpeculationConfig, drafter: Drafter
) -> None:
    """Make kv_len [S] the verified length of slots [S], and set what the coming drafts read around block_start [S].

    Tokens from block_start on were not seen by every scored row, so they are always read: they have no fair score.
    """
    budget = (kv_len.double() * config.ratio).floor().long().clamp(min=config.min_budget)
    split = drafter.split(budget)
    recent_start = (block_start - split.recent).clamp(min=0)
    state.kv_len[slots] = kv_len.int()
    state.recent_start[slots] = recent_start.int()
    state.num_staying[slots] = torch.minimum(split.staying, recent_start).int()
    state.num_moving[slots] = torch.minimum(split.moving, recent_start).int()
    state.lookup_budget[slots] = torch.minimum(split.lookups, recent_start).int()


def _share(budget: Tensor, share: float) -> Tensor:
    return (budget.double() * share).floor().long()


def _scored_blocks(state: SlotState, scores: Tensor, blocks: BlockRows, scored: list[int]) -> ScoredBlocks:
    place = torch.tensor(scored, device=blocks.slot.device)
    slot = blocks.slot[place]
    rows = [blocks.rows[index] for index in scored]
    return ScoredBlocks(
        planes=scores[:, : len(scored)],
        slot=slot,
        num_rows=torch.tensor([row.block_rows for row in rows], device=slot.device),
        last_row=state.kv_len[slot] - 1 - blocks.block_start[place],
        kv_len=state.kv_len[slot],
        first=torch.tensor([row.phase == Phase.PREFILL for row in rows], device=slot.device),
        history=state.score_history,
    )
