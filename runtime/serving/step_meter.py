"""What steps take and hold, for metrics: some three numbers a step, in the thread of the step loop. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from types import TracebackType

from sparsespec.runtime.scheduled_step import ScheduledStep
from sparsespec.runtime.scheduler import Progress
from sparsespec.runtime.serving.histogram import Histogram
from sparsespec.runtime.step_counts import StepCounter

STEP_BOUNDS = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_NO_SPAN = nullcontext()


class _Stopwatch:
    """A step's span; steps do not nest."""

    def __init__(self, seconds: Histogram) -> None:
        self._seconds = seconds
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._seconds.observe(perf_counter() - self._start)


class StepMeter:
    """A Recorder that counts."""

    def __init__(self) -> None:
        self.step_seconds = Histogram(STEP_BOUNDS)  # of the host, from one step's beginning to its end
        self.batch_size = Histogram(BATCH_BOUNDS)  # answers that a step brings on; steps without any are left out
        self._stopwatch = _Stopwatch(self.step_seconds)

    def span(self, name: str) -> AbstractContextManager[None]:
        """See Recorder."""
        return self._stopwatch if name == "step" else _NO_SPAN

    def count(self, step: ScheduledStep, counter: StepCounter) -> None:
        """See Recorder."""
        if step.rows:
            self.batch_size.observe(len(step.rows))

    def gain(self, progress: Sequence[Progress]) -> None:
        """Nothing: answers are metered where they are handed out."""
