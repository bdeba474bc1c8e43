"""Who drafts, and what draft rows read: one seam for every way to do it. And commit, which moves the lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

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

    pillars: Tensor
    recent: Tensor  # the newest verified tokens before the last block
    moving: Tensor
    lookups: Tensor


class Drafter(Protocol):
    """Prepares the coming drafts, or makes them."""

    @property
    def score_planes(self) -> ScorePlanes | None:
        """What `plan` needs of the verified rows' scores, if any."""

    def split(self, budget: Tensor) -> BudgetSplit:
        """How budget [S] is spent."""

    def plan(self, state: SlotState, scores: Tensor, batch: StepBatch) -> None:
        """After a commit: write the pillars, or the drafts, of the batch's blocks; lengths are those to come.

        A plain request's block is not scored, and whatever is written for it is not read.
        """

    def look_up(self, state: SlotState, drafts: DraftRows) -> None:
        """Before draft rows run: write what their own tokens call for."""


@dataclass(frozen=True)
class PillarDrafter:
    """Tokens that the last verified rows attended to (pillars), the newest ones, and those that new tokens call for.

    Reads per selection: see the rule. Reads per draft row, once for all layers: the slot's token ids. Keeps per slot:
    the pillars, and what the rule keeps.
    """

    rule: SelectionRule
    recent_share: float
    moving_share: float
    num_lookups: int

    @property
    def score_planes(self) -> ScorePlanes:
        """See Drafter."""
        return self.rule.score_planes

    def split(self, budget: Tensor) -> BudgetSplit:
        """Shares are rounded down, recent_share first; pillars that stay get the rest."""
        recent = _share(budget, self.recent_share)
        moving = torch.minimum(_share(budget, self.moving_share), budget - recent)
        lookups = (budget - recent - moving).clamp(max=self.num_lookups)
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
        if self.num_lookups == 0 or not drafts.needs:
            return
        slot = drafts.slot
        length = state.kv_len[slot] + drafts.draft_index + 1
        found, count = find_lookups(state.token_ids[slot], length, state.recent_start[slot], self.num_lookups)
        state.lookups[slot] = found
        state.num_lookups[slot] = torch.minimum(count, state.max_lookups[slot])


@dataclass(frozen=True)
class WindowDrafter:
    """A sliding window after the first num_sinks tokens (StreamingLLM, Xiao et al. 2023). Reads and keeps no scores."""

    num_sinks: int
    score_planes = None

    def split(self, budget: Tensor) -> BudgetSplit:
        """Everything but the sinks is recent."""
        nothing = torch.zeros_like(budget)
        return BudgetSplit(budget.clamp(max=self.num_sinks), (budget - self.num_sinks).clamp(min=0), nothing, nothing)

    def plan(self, state: SlotState, scores: Tensor, batch: StepBatch) -> None:
        """The sinks."""
        sinks = min(self.num_sinks, state.pillars.shape[-1])
        slots = batch.blocks.slot
        state.pillars[:, slots, :, :sinks] = torch.arange(sinks, dtype=torch.int32, device=slots.device)

    def look_up(self, state: SlotState, drafts: DraftRows) -> None:
        """Nothing."""


@dataclass(frozen=True)
class OracleDrafter:
    """Pillars chosen anew by every draft row, by its own attention over all tokens: what no rule can beat.

    For studies: it reads every key in every draft row. The choice itself is plugins.pillar_attention.oracle.
    """

    recent_share: float
    score_planes = None

    def split(self, budget: Tensor) -> BudgetSplit:
        """As PillarDrafter, without what a fresh choice has no need of."""
        recent, nothing = _share(budget, self.recent_share), torch.zeros_like(budget)
        return BudgetSplit(budget - recent, recent, nothing, nothing)

    def plan(self, state: SlotState, scores: Tensor, batch: StepBatch) -> None:
        """Nothing: attention does it."""

    def look_up(self, state: SlotState, drafts: DraftRows) -> None:
        """Nothing."""


@dataclass(frozen=True)
class NgramDrafter:
    """Drafts copied from the text itself (prompt lookup); no draft steps. Reads the slot's token ids, keeps nothing."""

    rule: NgramRule
    score_planes = None

    def split(self, budget: Tensor) -> BudgetSplit:
        """There are no draft rows."""
        nothing = torch.zeros_like(budget)
        return BudgetSplit(nothing, nothing, nothing, nothing)

    def plan(self, state: SlotState, scores: Tensor, batch: StepBatch) -> None:
        """Write the drafts, each certain of its token."""
        slot = batch.blocks.slot
        known = state.kv_len[slot].long() + 1
        drafts = propose(state.token_ids[slot], known, self.rule)
        place = known[:, None] + torch.arange(self.rule.k, device=slot.device)
        state.token_ids[slot[:, None], place] = drafts.tokens
        state.num_drafts[slot] = drafts.num_drafts.int()
        vocab_size = state.draft_probs.shape[-1]
        state.draft_probs[slot] = functional.one_hot(drafts.tokens, vocab_size).to(state.draft_probs)

    def look_up(self, state: SlotState, drafts: DraftRows) -> None:
        """There are no draft rows."""


def make_drafter(config: SpeculationConfig) -> Drafter:
    """The drafter that config names; `none` never drafts, so what it would read is of no account."""
    if config.drafter == "pillar":
        rule = make_selection_rule(config)
        return PillarDrafter(rule, config.recent_share, config.moving_share, config.num_lookups)
    if config.drafter == "oracle":
        return OracleDrafter(config.recent_share)
    if config.drafter == "ngram":
        return NgramDrafter(NgramRule(config.k, config.max_ngram, config.min_ngram))
    return WindowDrafter(config.num_sinks)


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
    state.num_pillars[slots] = torch.minimum(split.pillars, recent_start).int()
    state.num_moving[slots] = torch.minimum(split.moving, recent_start).int()
    state.max_lookups[slots] = torch.minimum(split.lookups, recent_start).int()


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
