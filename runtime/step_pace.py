"""What steps take beside what the cost model says, which has no host that is late, by what is decoded. No torch.

Two policies may cost the device the same and differ in when the host has to be fast: in lockstep it has steps of drafts
alone, which are short, and then the results of everybody at once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from sparsespec.runtime.cost_model import Kind
from sparsespec.runtime.cycles import Load

# Looks at the load. Those after a change are passed over: cycles end as they began.
_PASSED_OVER, _PERIOD = 4, 4
# Periods that are believed, and remembered: the fastest counts, since what disturbs a step only makes it longer. One
# alone would not do undisturbed either: 64 steps of lockstep have seven verifications of eight drafts, or eight.
_FEWEST, _REMEMBERED = 2, 3
# Of measured to predicted seconds, what is believed; beyond it steps were waiting for somebody else.
_BELIEVED = (1 / 3, 3.0)
# How far from where it was measured it is taken to hold.
_ALIKE_REQUESTS, _ALIKE_CONTEXT = 1.5, 2.0


@dataclass
class _Measured:
    load: Load  # of the newest period
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


@dataclass
class _Stretch:
    """Looks at one kind of decoding, one after another."""

    kind: Kind
    num_looks: int = 0
    seconds: float = 0.0
    predicted: float = 0.0


class StepPace:
    """Measured over predicted seconds, by kind of decoding, near the loads that it was measured at."""

    def __init__(self) -> None:
        self._stretch = _Stretch("plain")
        self._measured: dict[Kind, _Measured] = {}

    def factor(self, kind: Kind, load: Load) -> float:
        """By which predicted seconds are to be multiplied.

        Of what was never tried it is 1, so that it may be; or less, if what is at work shows the model to be too slow.
        """
        own = self._known(kind, load)
        if own is not None:
            return own
        at_work = self._known(self._stretch.kind, load)
        return 1.0 if at_work is None else min(1.0, at_work)

    def observe(self, kind: Kind, load: Load, seconds: float, predicted: float) -> None:
        """Of the steps between two looks, at the second of which the load is this."""
        if kind != self._stretch.kind or load.prompt_rows > 0:
            self._stretch = _Stretch(kind)
            return
        stretch = self._stretch
        stretch.num_looks += 1
        if stretch.num_looks > _PASSED_OVER:
            stretch.seconds += seconds
            stretch.predicted += predicted
        if stretch.num_looks == _PASSED_OVER + _PERIOD:
            self._note(load, stretch)
            self._stretch = _Stretch(kind, num_looks=_PASSED_OVER)

    def _note(self, load: Load, stretch: _Stretch) -> None:
        ratio = stretch.seconds / stretch.predicted
        if not _BELIEVED[0] <= ratio <= _BELIEVED[1]:
            return
        measured = self._measured.get(stretch.kind)
        if measured is None or not _alike(measured.load, load):
            self._measured[stretch.kind] = measured = _Measured(load)
        measured.load = load
        measured.ratios.append(ratio)

    def _known(self, kind: Kind, load: Load) -> float | None:
        measured = self._measured.get(kind)
        if measured is None or len(measured.ratios) < _FEWEST or not _alike(measured.load, load):
            return None
        return min(measured.ratios)


def _alike(one: Load, other: Load) -> bool:
    return _within(one.num_requests, other.num_requests, _ALIKE_REQUESTS) and _within(
        one.context, other.context, _ALIKE_CONTEXT
    )


def _within(one: float, other: float, factor: float) -> bool:
    return one <= factor * other and other <= factor * one
