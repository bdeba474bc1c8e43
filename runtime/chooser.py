"""Whether to speculate, and with how many drafts: what the cost model says is fastest, with hysteresis. No torch.

For the whole engine it compares ways to decode at the mean context and agreement. Where that means to speculate, each
request has its own number of drafts: what would be fastest if all requests had its context and agreement. To go by what
it costs the others instead would starve those that agree least: they bring most to the others by hardly decoding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsespec.runtime.config import Policy
from sparsespec.runtime.cost_model import CostModel, DraftReads, Way
from sparsespec.runtime.cycles import Load

# What speculation must gain to be taken up, and what it must still gain to be kept: short of it, 1% is lost.
_TAKEN_UP, _KEPT = 1.03, 0.99
# Another way to speculate must gain this over the one at work.
_BETTER = 1.01
# Of the time, what requests that would not draft may take to find out whether they should: with _KEPT less than 3%.
PROBE_SHARE = 0.01
_PROBE_DRAFTS = 4
_AGREEMENTS = 64  # steps of a request's agreement that have numbers of their own


@dataclass(frozen=True)
class Options:
    """What may be chosen from."""

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
    speed: float  # tokens/s, predicted
    plain_speed: float
    has_room: bool  # whether the KV cache has pages to draft at all

    @property
    def speculates(self) -> bool:
        """Whether requests draft."""
        return self.way.num_drafts > 0


class Chooser:
    """Chooses again whenever it is told of the load; probes are paid for by the steps between them."""

    def __init__(self, costs: CostModel, options: Options) -> None:
        self.costs = costs
        self.options = options
        self._plain = Way(options.policies[0], 0, options.reads[0])
        self.choice = Choice(Load(0, 0.0, 0.0), self._plain, 0.0, 0.0, has_room=True)
        self._numbers: dict[tuple[int, int], int] = {}  # drafts by agreement and context, as far as asked for
        self._saved = 0.0  # seconds, for probes
        self._saved_a_step = 0.0
        self._probe_cost = 0.0

    def update(self, load: Load, agreement: float) -> Choice:
        """Choose for a load with at least one request."""
        has_room = load.kv_share <= self.options.max_kv_share
        way = self._way(load, agreement) if has_room else self._plain
        plain_speed = self.costs.plain_speed(load)
        self.choice = Choice(load, way, self.costs.speed(load, way, agreement), plain_speed, has_room)
        cycle = self.costs.cycle_seconds(load, way) if way.num_drafts else self.costs.plain_seconds(load)
        self._saved_a_step = PROBE_SHARE * cycle / (way.num_drafts + 1)
        self._probe_cost = self.probe_cost()
        self._numbers = {}
        return self.choice

    @property
    def can_probe(self) -> bool:
        """Whether enough is saved up."""
        return self.choice.has_room and 0 < self._probe_cost <= self._saved

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
        """Seconds that a probe takes if nothing is accepted, and that the tokens take which it does not bring."""
        load, drafts = self.choice.load, self.options.probe_drafts
        way = Way(self.choice.way.policy, drafts, self.choice.way.reads)
        plain = self.costs.plain_seconds(load)
        scored = self.costs.verify_read(load.context) - self.costs.plain_read(load.context)
        if way.policy == "lockstep":
            return self.costs.cycle_seconds(load, way) - plain + load.num_requests * scored
        own = self._own_seconds(drafts, load.context) - self._own_seconds(0, load.context)
        return own + scored + drafts * plain / load.num_requests

    def _way(self, load: Load, agreement: float) -> Way:
        def speed(way: Way) -> float:
            return self.costs.speed(load, way, agreement)

        numbers = range(1, self.options.max_drafts + 1)
        ways = [
            Way(policy, k, reads) for policy in self.options.policies for reads in self.options.reads for k in numbers
        ]
        best, now, plain = max(ways, key=speed), self.choice.way, self.costs.plain_speed(load)
        if not self.choice.speculates:
            return best if speed(best) >= _TAKEN_UP * plain else self._plain
        if speed(best) < _BETTER * speed(now):
            best = now
        return best if speed(best) >= _KEPT * plain else self._plain

    def _own_number(self, agreement: float, context: float) -> int:
        load, way = replace(self.choice.load, context=context), self.choice.way

        def speed(num_drafts: int) -> float:
            return self.costs.speed(load, replace(way, num_drafts=num_drafts), agreement)

        return max(range(self.options.max_drafts + 1), key=speed)

    def _own_seconds(self, num_drafts: int, context: float) -> float:
        """By which one request's cycle makes its steps longer."""
        rows = (2 * num_drafts + 1) * self._seconds_per_row()
        if num_drafts == 0:
            return rows + self.costs.plain_read(context)
        drafts = num_drafts * self.costs.draft_read(context, num_drafts, self.choice.way.reads)
        return rows + drafts + self.costs.verify_read(context)

    def _seconds_per_row(self) -> float:
        """Of one row more, around the rows of the steps at work."""
        drafts = self.choice.way.num_drafts
        rows = max(2.0, self.choice.load.num_requests * (2 * drafts + 1) / (drafts + 1))
        return (self.costs.row_seconds(1.25 * rows) - self.costs.row_seconds(0.75 * rows)) / (0.5 * rows)
