"""What was answered in the last seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from time import monotonic

WINDOW_S = 10


@dataclass
class _Second:
    number: int
    num_tokens: int = 0
    num_verifications: int = 0
    num_drafts: int = 0
    num_accepted: int = 0


class RecentTokens:
    """Sums over the last WINDOW_S seconds, the one at work included."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._seconds: deque[_Second] = deque()

    def add_tokens(self, num_tokens: int) -> None:
        """An answer gained tokens."""
        self._now().num_tokens += num_tokens

    def add_verification(self, num_drafts: int, num_accepted: int) -> None:
        """A block was verified."""
        second = self._now()
        second.num_verifications += 1
        second.num_drafts += num_drafts
        second.num_accepted += num_accepted

    @property
    def tokens_per_second(self) -> float:
        """Over the window."""
        return self._sum(attrgetter("num_tokens")) / WINDOW_S

    @property
    def drafts_mean(self) -> float | None:
        """Drafts of a verification; None where nothing was verified."""
        return self._mean(attrgetter("num_drafts"))

    @property
    def accepted_drafts_mean(self) -> float | None:
        """Accepted drafts of a verification; None where nothing was verified."""
        return self._mean(attrgetter("num_accepted"))

    def _mean(self, of: Callable[[_Second], int]) -> float | None:
        count = self._sum(attrgetter("num_verifications"))
        return self._sum(of) / count if count else None

    def _sum(self, of: Callable[[_Second], int]) -> int:
        first = int(self._clock()) - WINDOW_S
        return sum(of(second) for second in self._seconds if second.number > first)

    def _now(self) -> _Second:
        number = int(self._clock())
        if not self._seconds or self._seconds[-1].number != number:
            self._seconds.append(_Second(number))
        while self._seconds[0].number <= number - WINDOW_S:
            self._seconds.popleft()
        return self._seconds[-1]
