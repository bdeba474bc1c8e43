"""What drafts read, by verified tokens: one of several tables, in memory whose address CUDA graphs know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.plugins.accept_drafts.inputs import BUDGET_PARTS
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.drafter import Drafter


@dataclass(frozen=True)
class _Table:
    budget: Tensor  # [max_positions] int64: StepMemory.budget
    split: Tensor  # [max_positions, parts] int32: AcceptDraftsInputs.budget_split


def budget_of(config: SpeculationConfig, max_positions: int) -> Tensor:
    """StepMemory.budget as config has it, on the CPU."""
    return torch.tensor([config.budget(kv_len) for kv_len in range(max_positions)])


class BudgetTables:
    """Rewrites `budget` and `split` when another is wanted, in order with the steps; nothing is allocated by budget."""

    def __init__(self, budget: Tensor, drafter: Drafter) -> None:
        """budget: StepMemory's own; it is the first to choose from."""
        self._drafter = drafter
        self._at_work = _Table(budget, self._split(budget))
        self._offered = [_Table(budget.clone(), self._at_work.split.clone())]
        self._place = 0

    @property
    def split(self) -> Tensor:
        """AcceptDraftsInputs.budget_split."""
        return self._at_work.split

    def offer(self, configs: Sequence[SpeculationConfig]) -> None:
        """To choose from, from now on; the first is at work. Each is within the engine's max_budget."""
        budgets = [budget_of(each, len(self._at_work.budget)).to(self._at_work.budget.device) for each in configs]
        self._offered = [_Table(budget, self._split(budget)) for budget in budgets]
        self._write(0)

    def use(self, place: int) -> None:
        """Blocks of the steps that follow set what their drafts read by this one. The host waits for nothing."""
        if place != self._place:
            self._write(place)

    def _write(self, place: int) -> None:
        self._at_work.budget.copy_(self._offered[place].budget)
        self._at_work.split.copy_(self._offered[place].split)
        self._place = place

    def _split(self, budget: Tensor) -> Tensor:
        split = self._drafter.split(budget)
        return torch.stack([getattr(split, part) for part in BUDGET_PARTS], dim=1).int()
