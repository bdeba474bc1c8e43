"""Cycles that follow the load, and what was accepted before; and where their verifications fall. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sparsespec.runtime.agreement import Agreement
from sparsespec.runtime.chooser import Chooser
from sparsespec.runtime.cycles import FirstCycle, LoadSource
from sparsespec.runtime.request import Request

# Steps between two looks at the load, between two probes, and between two probes of one request.
_LOOK_AGAIN = 16
_PROBE_NEXT = 8
_PROBE_AGAIN = 64
# Agreement expected of a model that nobody has seen drafting: 4.1 of 8 accepted.
_PRIOR = 0.85
_KEEP_OF_REQUEST, _KEEP_OF_ALL = 0.9, 0.99


class Ends(Protocol):
    """Where cycles end: a little more or less than wanted makes steps even, or verifications coincide."""

    @property
    def together(self) -> bool:
        """Whether one request's cycle is everybody's."""

    def begin_step(self, step: int) -> None:
        """Nobody ends before it any more."""

    def place(self, step: int, wanted: int, least: int, most: int) -> int:
        """Drafts of a cycle that begins after `step`: wanted, or about as many. 0 is kept where it evens nothing."""


class SpreadEnds:
    """An even share of the verifications in every step."""

    def __init__(self) -> None:
        self._ending: dict[int, int] = {}  # cycles by the step that ends them

    @property
    def together(self) -> bool:
        """See Ends."""
        return False

    def begin_step(self, step: int) -> None:
        """See Ends."""
        self._ending.pop(step - 1, None)

    def place(self, step: int, wanted: int, least: int, most: int) -> int:
        """See Ends: the emptiest step of those from least to most, the one wanted if it is one of the emptiest."""
        if wanted == 0:
            return 0
        numbers = range(least, most + 1)
        best = min(numbers, key=lambda number: (self._ending.get(step + 1 + number, 0), abs(number - wanted)))
        self._ending[step + 1 + best] = self._ending.get(step + 1 + best, 0) + 1
        return best


class CommonEnds:
    """All verifications in the same step: who begins while others draft ends with them."""

    def __init__(self) -> None:
        self._end = 0  # step of the verifications

    @property
    def together(self) -> bool:
        """See Ends."""
        return True

    def begin_step(self, step: int) -> None:
        """See Ends."""

    def place(self, step: int, wanted: int, least: int, most: int) -> int:
        """See Ends."""
        if self._end <= step:
            self._end = step + 1 + wanted
        return self._end - step - 1


class _Known:
    """What is known of a request."""

    def __init__(self, request: Request, guess: float) -> None:
        self.request = request
        self.agreement = Agreement(_KEEP_OF_REQUEST, guess)
        self.num_seen = 0  # verifications
        self.next_probe = 0  # not before this step


class AdaptiveCycles:
    """cycles.Cycles by a chooser. What a request samples, not how it is distributed, depends on who else runs."""

    def __init__(self, chooser: Chooser, ends: Ends) -> None:
        self._chooser = chooser
        self._ends = ends
        self._everybody = Agreement(_KEEP_OF_ALL, _PRIOR)
        self._known: dict[int, _Known] = {}  # by request id
        self._look_at = 0  # step
        self._next_probe = 0  # not before this step
        self._quiet = True  # nobody begins to draft in this step

    @property
    def chooser(self) -> Chooser:
        """For inspection."""
        return self._chooser

    @property
    def agreement(self) -> float:
        """Of all requests."""
        return self._everybody.share

    def begin_step(self, step: int, source: LoadSource) -> bool:
        """See Cycles."""
        self._ends.begin_step(step)
        if step >= self._look_at:
            self._look(step, source)
        self._chooser.pass_step()
        probes = step >= self._next_probe and self._chooser.can_probe
        self._quiet = not (probes or self._chooser.choice.speculates)
        return not self._quiet

    def first(self, request: Request, others: Iterable[Request], step: int) -> FirstCycle:
        """See Cycles: at once, and as short as makes the steps even."""
        self._known[request.request_id] = known = _Known(request, self.agreement)
        wanted = self._wanted(request, known, step)
        return FirstCycle(0, self._ends.place(step, wanted, least=min(1, wanted), most=wanted))

    def next_drafts(self, request: Request, step: int) -> int:
        """See Cycles: one more or less than the request's number where that makes the steps even."""
        if self._quiet:
            return 0
        known = self._known[request.request_id]
        self._learn(known)
        wanted = self._wanted(request, known, step)
        most = min(wanted + 1, request.spec.draft_len)
        return self._ends.place(step, wanted, least=max(1, wanted - 1), most=most)

    def rejoin(self, request: Request, others: Iterable[Request], step: int) -> int:
        """See Cycles: none, its next cycle is as long as makes the steps even."""
        return 0

    def end(self, request: Request) -> None:
        """See Cycles."""
        self._known.pop(request.request_id, None)

    def _look(self, step: int, source: LoadSource) -> None:
        for known in self._known.values():
            self._learn(known)
        load = source.load()
        if load.num_requests:
            self._chooser.update(load, self.agreement)
            self._look_at = step + _LOOK_AGAIN

    def _learn(self, known: _Known) -> None:
        verifications = known.request.verifications_since(known.num_seen)
        for check in verifications:
            if check.num_drafts:
                known.agreement.observe(check.num_drafts, check.num_accepted)
                self._everybody.observe(check.num_drafts, check.num_accepted)
        known.num_seen += len(verifications)

    def _wanted(self, request: Request, known: _Known, step: int) -> int:
        wanted = self._chooser.drafts_for(known.agreement.share, request.kv_len or request.num_prefilled)
        if wanted == 0 and step >= max(self._next_probe, known.next_probe):
            wanted = self._chooser.take_probe()
            if wanted:
                self._next_probe, known.next_probe = step + _PROBE_NEXT, step + _PROBE_AGAIN
                self._quiet = not (self._ends.together or self._chooser.choice.speculates)
        return wanted
