"""How many drafts each cycle of a request has, and when its first one begins. No torch.

A cycle is decided on when the block before it is scheduled, since only a scored block chooses pillars for the drafts
that follow. The host is late, so it goes by the cycles before that block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from sparsespec.runtime.config import Policy
from sparsespec.runtime.request import Request

# Steps between two looks at the load.
LOOK_AGAIN = 16


@dataclass(frozen=True)
class FirstCycle:
    """What follows a prompt."""

    delay: int  # steps that pass before it
    num_drafts: int


NO_CYCLES = FirstCycle(delay=0, num_drafts=0)  # of a request that never drafts


@dataclass(frozen=True)
class Load:
    """What a step has to do, on average."""

    num_requests: int  # that run
    context: float  # verified tokens of each, or of its prompt
    kv_share: float  # of the KV pages, those that are granted
    prompt_rows: float = 0.0  # of prompts, beside the requests' own


class LoadSource(Protocol):
    """Who knows the load, for whoever wants to know."""

    def load(self) -> Load:
        """As of the last results read; takes time in proportion to the requests."""


class Cycles(Protocol):
    """Asked for requests that may draft, once per cycle, but not after a plain step where nobody begins to.

    Numbers of drafts are from 0, a plain step, to the spec's draft_len.
    """

    @property
    def policy(self) -> Policy:
        """Of the cycles that begin now."""

    @property
    def budget(self) -> int:
        """What drafts read after blocks that end now: a place among the executor's budgets."""

    def begin_step(self, step: int, source: LoadSource) -> bool:
        """Step `step` is about to be scheduled. Returns whether who has plain steps may begin to draft after it."""

    def first(self, request: Request, others: Iterable[Request], step: int) -> FirstCycle:
        """Of a request whose prompt ends in `step`. others: those that run, it may be among them."""

    def next_drafts(self, request: Request, step: int) -> int:
        """Drafts of the cycle that begins after the request's verification in `step`."""

    def rejoin(self, request: Request, others: Iterable[Request], step: int) -> int:
        """Steps, from `step` on, that a request waits which was left out of some, where it was in its cycle."""

    def end(self, request: Request) -> None:
        """The request has left."""


class FixedCycles:
    """Every cycle has draft_len drafts, so that what a request samples does not depend on who else runs."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def policy(self) -> Policy:
        """See Cycles."""
        return self._policy

    @property
    def budget(self) -> int:
        """See Cycles."""
        return 0

    def begin_step(self, step: int, source: LoadSource) -> bool:
        """See Cycles."""
        return False

    def first(self, request: Request, others: Iterable[Request], step: int) -> FirstCycle:
        """See Cycles: delayed so that verifications spread evenly (unified) or coincide (lockstep)."""
        return FirstCycle(self.rejoin(request, others, step + 1), request.spec.draft_len)

    def rejoin(self, request: Request, others: Iterable[Request], step: int) -> int:
        """See Cycles: as its first cycle was delayed."""
        load = _verifications_from(request.next_verify_step(step), request, others, step)
        return load.index(min(load) if self._policy == "unified" else max(load))

    def next_drafts(self, request: Request, step: int) -> int:
        """See Cycles: as many as in the cycle before."""
        return request.num_drafts

    def end(self, request: Request) -> None:
        """See Cycles."""


def _verifications_from(first: int, joining: Request, others: Iterable[Request], step: int) -> list[int]:
    """Running requests that verify in each of the steps, `step` and later ones, among which joining may choose.

    A request without draft steps verifies in all of them, which favours none.
    """
    load = [0] * (joining.spec.num_draft_steps + 1)
    for request in others:
        if request.in_cycle and request is not joining:
            period = request.spec.num_draft_steps + 1
            for delay in range((request.next_verify_step(step) - first) % period, len(load), period):
                load[delay] += 1
    return load
