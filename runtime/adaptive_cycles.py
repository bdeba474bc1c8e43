"""Cycles that follow the load, and what was accepted before; and where their verifications fall. No torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sparsespec.runtime.agreement import Agreement, AgreementByReads
from sparsespec.runtime.chooser import Chooser
from sparsespec.runtime.config import Policy
from sparsespec.runtime.cycles import LOOK_AGAIN, FirstCycle, LoadSource
from sparsespec.runtime.request import Request

# Steps between two probes, and between two probes of one request.
_PROBE_NEXT = 8
_PROBE_AGAIN = 64
# Agreement expected of a model that nobody has seen drafting: 6.4 of 8 accepted. Where that would pay it is tried, and
# known a cycle later; to expect less and wait for probes would take thousands of steps.
_PRIOR = 0.95
_KEEP_OF_REQUEST = 0.9


@dataclass(frozen=True)
class Moment:
    """When the load was looked at."""

    seconds: float  # of a clock
    num_captured: int  # graphs so far: steps in which one is captured say nothing of others


class SpreadEnds:
    """An even share of the verifications in every step."""

    def __init__(self) -> None:
        self._ending: dict[int, int] = {}  # cycles by the step that ends them

    def begin_step(self, step: int) -> None:
        """Nobody ends before it any more."""
        self._ending.pop(step - 1, None)

    def place(self, step: int, wanted: int, least: int, most: int) -> int:
        """Drafts of a cycle that begins after `step`: of least to most those that end in the emptiest step.

        Of equals the nearest to the wanted ones; 0 stays 0, since that evens nothing.
        """
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

    def place(self, step: int, wanted: int) -> int:
        """Drafts of a cycle that begins after `step`: as many as the others have left, or else those wanted."""
        if self._end <= step:
            self._end = step + 1 + wanted
        return self._end - step - 1


class _Known:
    """What is known of a request."""

    def __init__(self, request: Request, guess: float) -> None:
        self.request = request
        self.agreement = Agreement(_KEEP_OF_REQUEST, guess)
        self.num_seen = 0  # verifications
        self.begun: deque[int] = deque()  # steps after which cycles with drafts began, of those not seen verified
        self.staggered = False  # whether the cycle before was one among evenly spread ones
        self.next_probe = 0  # not before this step


class AdaptiveCycles:
    """cycles.Cycles by a chooser. What a request samples, not how it is distributed, depends on who else runs.

    Where nobody drafts, a step costs the host nothing beyond a plain one's, and every 16th the sum over the load.
    """

    def __init__(self, chooser: Chooser, clock: Callable[[], Moment]) -> None:
        """clock: by which predictions are checked."""
        self._chooser = chooser
        self._clock = clock
        self._spread = SpreadEnds()
        self._common = CommonEnds()
        self._everybody = AgreementByReads(_PRIOR, chooser.choice.way.reads)
        self._known: dict[int, _Known] = {}  # by request id
        self._drafting: dict[int, _Known] = {}  # those of them with drafts that are not seen verified
        self._look_at = 0  # step
        self._looked: tuple[int, Moment] | None = None  # step of the last look, and when it was
        self._next_probe = 0  # not before this step
        self._read_since = 0  # step in which what drafts read changed
        self._quiet = True  # nobody begins to draft in this step

    @property
    def chooser(self) -> Chooser:
        """For inspection."""
        return self._chooser

    @property
    def agreement(self) -> float:
        """Of all requests."""
        return self._everybody.share

    @property
    def policy(self) -> Policy:
        """See Cycles."""
        return self._chooser.choice.way.policy

    @property
    def budget(self) -> int:
        """See Cycles."""
        return self._chooser.budget

    def begin_step(self, step: int, source: LoadSource) -> bool:
        """See Cycles."""
        self._spread.begin_step(step)
        if step >= self._look_at:
            self._look(step, source)
        self._chooser.pass_step()
        probes = step >= self._next_probe and self._chooser.can_probe
        self._quiet = not (probes or self._chooser.choice.speculates)
        return not self._quiet

    def first(self, request: Request, others: Iterable[Request], step: int) -> FirstCycle:
        """See Cycles: at once, and as short as makes the steps even."""
        self._known[request.request_id] = known = _Known(request, self.agreement)
        return FirstCycle(0, self._begin(known, step))

    def next_drafts(self, request: Request, step: int) -> int:
        """See Cycles: one more or less than the request's number where that makes the steps even."""
        known = self._known[request.request_id]
        if self._quiet:
            known.staggered = False
            return 0
        self._learn(known)
        return self._begin(known, step)

    def rejoin(self, request: Request, others: Iterable[Request], step: int) -> int:
        """See Cycles: none, its next cycle is as long as makes the steps even."""
        return 0

    def end(self, request: Request) -> None:
        """See Cycles."""
        self._known.pop(request.request_id, None)
        self._drafting.pop(request.request_id, None)

    def _look(self, step: int, source: LoadSource) -> None:
        for known in list(self._drafting.values()):
            self._learn(known)
        load, now = source.load(), self._clock()
        looked, self._looked = self._looked, (step, now) if load.num_requests else None
        if load.num_requests:
            if looked is not None and looked[1].num_captured == now.num_captured:
                self._chooser.pass_time(load, step - looked[0], now.seconds - looked[1].seconds)
            before = self._chooser.choice.way.reads
            after = self._chooser.update(load, self._everybody).way.reads
            if after != before:
                self._everybody.change(after, load.context)
                self._read_since = step
            self._look_at = step + LOOK_AGAIN

    def _learn(self, known: _Known) -> None:
        """Verifications of drafts; those of plain steps are passed over."""
        if not known.begun:
            return
        verifications = known.request.verifications_since(known.num_seen)
        for check in verifications:
            if check.num_drafts:
                known.agreement.observe(check.num_drafts, check.num_accepted)
                if known.begun.popleft() >= self._read_since:
                    self._everybody.observe(check.num_drafts, check.num_accepted)
        known.num_seen += len(verifications)
        if not known.begun:
            self._drafting.pop(known.request.request_id)

    def _begin(self, known: _Known, step: int) -> int:
        """Drafts of the cycle after `step`."""
        request = known.request
        wanted = self._chooser.drafts_for(known.agreement.share, request.kv_len or request.num_prefilled)
        probes = wanted == 0 and self._may_probe(known, step)
        if probes:
            wanted = self._chooser.take_probe()
            self._next_probe, known.next_probe = step + _PROBE_NEXT, step + _PROBE_AGAIN
            self._quiet = not (self.policy == "lockstep" or self._chooser.choice.speculates)
        if self.policy == "lockstep":
            num_drafts = self._common.place(step, wanted)
        else:
            num_drafts = self._place_evenly(known, step, wanted, probes)
        known.staggered = num_drafts > 0 and self.policy == "unified"
        self._note(known, step, num_drafts)
        return num_drafts

    def _may_probe(self, known: _Known, step: int) -> bool:
        """Under lockstep everybody probes, whoever is asked first."""
        turn = self.policy == "lockstep" or step >= known.next_probe
        return turn and step >= self._next_probe and self._chooser.can_probe

    def _place_evenly(self, known: _Known, step: int, wanted: int, probes: bool) -> int:
        """Who comes from elsewhere finds its place in one cycle, who is in place moves by one draft."""
        if known.staggered or probes:
            most = min(wanted + 1, known.request.spec.draft_len)
            return self._spread.place(step, wanted, least=max(1, wanted - 1), most=most)
        return self._spread.place(step, wanted, least=min(1, wanted), most=wanted)

    def _note(self, known: _Known, step: int, num_drafts: int) -> None:
        if num_drafts == 0:
            return
        if not known.begun:
            known.num_seen = known.request.num_verifications
            self._drafting[known.request.request_id] = known
        known.begun.append(step)
