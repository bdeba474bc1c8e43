"""How to decode at a load: what the cost model says is fastest, with hysteresis. No torch.

For the whole engine it compares ways to decode at the mean context and agreement: policies, what drafts read, numbers
of drafts, and none. Where that means to speculate under `unified`, each request has its own number of drafts: what
would be fastest if all requests had its context and agreement. To go by what it costs the others instead would starve
those that agree least: they bring most to the others by hardly decoding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from sparsespec.runtime.config import Policy
from sparsespec.runtime.cost_model import CostModel, DraftReads, Way
from sparsespec.runtime.cycles import Load
from sparsespec.runtime.step_pace import StepPace

# What speculation must gain to be taken up, and what it must still gain to be kept: short of it, 1% is lost.
_TAKEN_UP, _KEPT = 1.03, 0.99
# What must be gained by another number of drafts over the one at work, by other reads, and by another policy: requests
# that are unlike the mean have no numbers of their own in lockstep, which is not in the model.
_OTHER_NUMBER, _OTHER_READS, _OTHER_POLICY = 1.01, 1.03, 1.05
# Of the time, what requests that would not draft may take to find out whether they should: with _KEPT less than 3%.
PROBE_SHARE = 0.01
_PROBE_DRAFTS = 4
_AGREEMENTS = 64  # steps of a request's agreement that have numbers of their own


@dataclass(frozen=True)
class Options:
    """What may be chosen from; what stands first is for plain decoding and to begin with."""

    max_drafts: int
    policies: tuple[Policy, ...]
    reads: tuple[DraftReads, ...]
    max_kv_share: float  # of the KV pages; with more of them granted nothing is drafted

    @property
    def probe_drafts(self) -> int:
        """Drafts of a cycle that only finds out."""
        return min(_PROBE_DRAFTS, self.max_drafts)


@dataclass(frozen=True)
class Choice:
    """What is done at a load."""

    load: Load
    way: Way
    speed: float  # tokens/s, predicted, and corrected by what steps took
    plain_speed: float
    may_pay: bool  # whether drafting would pay if all drafts agreed, and the KV cache has pages to draft at all

    @property
    def speculates(self) -> bool:
        """Whether requests draft."""
        return self.way.num_drafts > 0


class Agreements(Protocol):
    """How often drafts agree, and would agree: agreement.AgreementByReads."""

    @property
    def settled(self) -> bool:
        """Whether other reads may be thought of."""

    def of(self, reads: DraftReads, context: float) -> float:
        """Probability that a draft agrees which reads so."""


class Chooser:
    """Chooses again whenever it is told of the load; probes are paid for by the steps between them."""

    def __init__(self, costs: CostModel, options: Options) -> None:
        self.costs = costs
        self.options = options
        self._pace = StepPace()
        plain = Way(options.policies[0], 0, options.reads[0])
        self.choice = Choice(Load(0, 0.0, 0.0), plain, 0.0, 0.0, may_pay=False)
        self._numbers: dict[tuple[int, int], int] = {}  # drafts by agreement and context, as far as asked for
        self._saved = 0.0  # seconds, for probes
        self._saved_a_step = 0.0
        self._probe_cost = 0.0

    def update(self, load: Load, agreements: Agreements) -> Choice:
        """Choose for a load with at least one request."""
        plain_speed = self._speed(load, self._plain, 0.0)
        may_pay = load.kv_share <= self.options.max_kv_share and self._may_pay(load, plain_speed)
        way = self._way(load, agreements, plain_speed) if may_pay else self._plain
        speed = self._speed(load, way, agreements.of(way.reads, load.context))
        self.choice = Choice(load, way, speed, plain_speed, may_pay)
        self._saved_a_step = PROBE_SHARE * self.costs.step_seconds(load, way)
        self._probe_cost = self.probe_cost()
        self._numbers = {}
        return self.choice

    def pass_time(self, load: Load, num_steps: int, seconds: float) -> None:
        """So long took the steps since the last update, after which the load is this."""
        way = self.choice.way
        self._pace.observe(way.kind, load, seconds, num_steps * self.costs.step_seconds(load, way))

    @property
    def budget(self) -> int:
        """Place in Options.reads of what drafts read."""
        return self.options.reads.index(self.choice.way.reads)

    @property
    def can_probe(self) -> bool:
        """Whether enough is saved up."""
        return self.choice.may_pay and 0 < self._probe_cost <= self._saved

    def drafts_for(self, agreement: float, context: int) -> int:
        """Of the next cycle of a request that agrees so often and has so many verified tokens, to a power of two."""
        if not self.choice.speculates:
            return 0
        if self.choice.way.policy == "lockstep":
            return self.choice.way.num_drafts
        key = int(agreement * _AGREEMENTS), context.bit_length()
        if key not in self._numbers:
            self._numbers[key] = self._own_number(min(1.0, (key[0] + 0.5) / _AGREEMENTS), 0.75 * 2 ** key[1])
        return self._numbers[key]

    def pass_step(self) -> None:
        """A step's share is saved up for probes, no more than one of them takes."""
        self._saved = min(self._saved + self._saved_a_step, self._probe_cost)

    def take_probe(self) -> int:
        """Drafts that a request which would not draft may draft nevertheless, 0 most of the time."""
        if not self.can_probe:
            return 0
        self._saved = 0.0
        return self.options.probe_drafts

    def probe_cost(self) -> float:
        """Seconds that a probe takes if nothing is accepted, and that the tokens take which it does not bring.

        Under unified the request's steps are one scored row, its drafts and its verification, whose rows may need the
        next larger graph, and each may be of a slower kind; under lockstep everybody has them.
        """
        costs, load, drafts = self.costs, self.choice.load, self.options.probe_drafts
        plain, scored = costs.plain_seconds(load), costs.verify_read(load.context) - costs.plain_read(load.context)
        way = Way(self.options.policies[0], drafts, self.choice.way.reads)
        if way.policy == "lockstep":
            scores = costs.latencies.most_beyond_plain + load.num_requests * scored
            return costs.cycle_seconds(load, way) - plain + scores
        rows = costs.step_row_seconds(load.num_requests + drafts) - costs.step_row_seconds(load.num_requests)
        reads = costs.draft_read(load.context, drafts, way.reads) - costs.plain_read(load.context)
        kinds = (drafts + 2) * costs.latencies.most_beyond_plain
        return max(0.0, rows) + kinds + 2 * scored + drafts * (max(0.0, reads) + plain / load.num_requests)

    @property
    def _plain(self) -> Way:
        return Way(self.options.policies[0], 0, self.choice.way.reads)

    def _ways(self, reads: tuple[DraftReads, ...]) -> list[Way]:
        numbers = range(1, self.options.max_drafts + 1)
        return [Way(policy, k, each) for policy in self.options.policies for each in reads for k in numbers]

    def _may_pay(self, load: Load, plain_speed: float) -> bool:
        ways = self._ways((self.choice.way.reads,))
        return self.choice.speculates or any(
            self._speed(load, way, 1.0) >= _TAKEN_UP * plain_speed for way in reversed(ways)
        )

    def _way(self, load: Load, agreements: Agreements, plain_speed: float) -> Way:
        now = self.choice.way
        reads = self.options.reads if agreements.settled else (now.reads,)
        shares = {each: agreements.of(each, load.context) for each in reads}

        def speed(way: Way) -> float:
            return self._speed(load, way, shares[way.reads])

        best = max(self._ways(reads), key=lambda way: speed(way) / _bar(way, now))
        return best if speed(best) >= (_KEPT if now.num_drafts else _TAKEN_UP) * plain_speed else self._plain

    def _speed(self, load: Load, way: Way, agreement: float) -> float:
        """Tokens per second: predicted, and corrected by what such steps took."""
        return self.costs.speed(load, way, agreement) / self._pace.factor(way.kind, load)

    def _own_number(self, agreement: float, context: float) -> int:
        """What steps take beside what is predicted goes by the load of them all."""
        everybody, way = self.choice.load, self.choice.way
        load = replace(everybody, context=context)

        def speed(num_drafts: int) -> float:
            tried = replace(way, num_drafts=num_drafts)
            return self.costs.speed(load, tried, agreement) / self._pace.factor(tried.kind, everybody)

        return max(range(self.options.max_drafts + 1), key=speed)


def _bar(way: Way, now: Way) -> float:
    """By which it must be faster than what is at work."""
    if way.policy != now.policy:
        return _OTHER_POLICY
    if way.reads != now.reads:
        return _OTHER_READS
    return 1.0 if way == now else _OTHER_NUMBER
