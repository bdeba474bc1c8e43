"""Cycles of any length, drawn anew for every cycle: what no chooser may go beyond."""

from __future__ import annotations

import random
from collections.abc import Iterable

from sparsespec.runtime.config import Policy
from sparsespec.runtime.cycles import FirstCycle, LoadSource
from sparsespec.runtime.request import Request


class RandomCycles:
    """cycles.Cycles: plain steps, short cycles and long ones, under either policy, of any budget, in no order."""

    def __init__(self, seed: int, budgets: tuple[int, ...] = (0,)) -> None:
        self._random = random.Random(seed)
        self.budgets = budgets
        self.drawn: list[int] = []
        self.policy: Policy = "unified"
        self.budget = budgets[0]

    def begin_step(self, step: int, source: LoadSource) -> bool:
        """See Cycles."""
        self.policy = self._random.choice(("unified", "unified", "lockstep"))
        self.budget = self._random.choice(self.budgets)
        return True

    def first(self, request: Request, others: Iterable[Request], step: int) -> FirstCycle:
        """See Cycles."""
        return FirstCycle(self._random.randint(0, request.spec.draft_len), self.next_drafts(request, step))

    def next_drafts(self, request: Request, step: int) -> int:
        """See Cycles."""
        self.drawn.append(self._random.choice((0, 0, *range(request.spec.draft_len + 1))))
        return self.drawn[-1]

    def rejoin(self, request: Request, others: Iterable[Request], step: int) -> int:
        """See Cycles."""
        return self._random.randint(0, request.spec.draft_len)

    def end(self, request: Request) -> None:
        """See Cycles."""
