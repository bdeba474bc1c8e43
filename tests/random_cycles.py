"""Cycles of any length, drawn anew for every cycle: what no chooser may go beyond."""

from __future__ import annotations

import random
from collections.abc import Iterable

from sparsespec.runtime.cycles import FirstCycle, LoadSource
from sparsespec.runtime.request import Request


class RandomCycles:
    """cycles.Cycles: plain steps, short cycles and long ones, in no order."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.drawn: list[int] = []

    def begin_step(self, step: int, source: LoadSource) -> bool:
        """See Cycles."""
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
