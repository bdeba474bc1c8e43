"""What draft rows read: one seam for every way to choose it. And commit, which moves the lengths that they go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparsespec.plugins.pillar_attention.inputs import StepInputs
from sparsespec.plugins.pillar_select.reference import pillar_select
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.slot_state import SlotState


class Drafter(Protocol):
    """Chooses the tokens that the draft rows of the coming cycle attend to."""

    @property
    def scored(self) -> bool:
        """Whether `select` needs the scores of the verified rows."""

    def recent_tokens(self, budget: Tensor) -> Tensor:
        """[S] the part of budget [S] spent on the newest verified tokens; the rest may be pillars."""

    def select(self, state: SlotState, scores: Tensor, step: StepInputs[Tensor], slots: Tensor) -> None:
        """Write the pillars of `slots` [S], whose lengths and num_pillars are already those of the coming drafts.

        The slots that `step` scores are among them; a plain request's slot is not scored and needs no pillars.
        """


@dataclass(frozen=True)
class PillarDrafter:
    """PillarAttn: the tokens that the last verified rows attended to most, and the newest ones.

    Reads per select: the scores, num_layers * num_kv_heads * kv_len fp32. Keeps per slot: the pillars.
    """

    recent_share: float
    scored = True

    def recent_tokens(self, budget: Tensor) -> Tensor:
        """floor(recent_share * budget)."""
        return (budget.double() * self.recent_share).floor().long()

    def select(self, state: SlotState, scores: Tensor, step: StepInputs[Tensor], slots: Tensor) -> None:
        """Top scores before recent_start."""
        pillar_select(scores, state.pillars, step)


@dataclass(frozen=True)
class WindowDrafter:
    """A sliding window after the first num_sinks tokens (StreamingLLM, Xiao et al. 2023). Reads and keeps no scores."""

    num_sinks: int
    scored = False

    def recent_tokens(self, budget: Tensor) -> Tensor:
        """Everything but the sinks."""
        return (budget - self.num_sinks).clamp(min=0)

    def select(self, state: SlotState, scores: Tensor, step: StepInputs[Tensor], slots: Tensor) -> None:
        """The sinks."""
        sinks = min(self.num_sinks, state.pillars.shape[-1])
        state.pillars[:, slots, :, :sinks] = torch.arange(sinks, dtype=torch.int32, device=slots.device)


def make_drafter(config: SpeculationConfig) -> Drafter:
    """The drafter that config names; `none` never drafts, so what it would read is of no account."""
    if config.drafter == "pillar":
        return PillarDrafter(config.recent_share)
    return WindowDrafter(config.num_sinks)


def commit(
    state: SlotState, slots: Tensor, kv_len: Tensor, block_start: Tensor, config: SpeculationConfig, drafter: Drafter
) -> None:
    """Make kv_len [S] the verified length of slots [S], and set what the coming drafts read around block_start [S].

    Tokens from block_start on were not seen by every scored row, so they are always read: they have no fair score.
    """
    budget = (kv_len.double() * config.ratio).floor().long().clamp(min=config.min_budget)
    recent = drafter.recent_tokens(budget)
    recent_start = (block_start - recent).clamp(min=0)
    state.kv_len[slots] = kv_len.int()
    state.recent_start[slots] = recent_start.int()
    state.num_pillars[slots] = torch.minimum(budget - recent, recent_start).int()
