"""The loops over a step's verbs: one waits for every step, one runs ahead of the results. No torch.

Both give the same tokens: what a step does never depends on when results are read.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar

from sparsespec.runtime.device.executor import Executor, PendingResults
from sparsespec.runtime.scheduled_step import ScheduledStep
from sparsespec.runtime.scheduler import Progress, Scheduler
from sparsespec.runtime.step_counts import StepCounter
from sparsespec.runtime.tracing import Recorder

BatchT = TypeVar("BatchT")
LogitsT = TypeVar("LogitsT")


class StepVerbs(Generic[BatchT, LogitsT]):
    """The five verbs of a step, each a span of the recorder."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor[BatchT, LogitsT],
        recorder: Recorder,
        counter: StepCounter,
    ) -> None:
        """counter: for the recorder."""
        self._scheduler = scheduler
        self._executor = executor
        self._counter = counter
        self._recorder = recorder

    def schedule(self) -> ScheduledStep:
        """Decide who does what."""
        with self._recorder.span("schedule"):
            step = self._scheduler.schedule()
        self._recorder.count(step, self._counter)
        return step

    def prepare(self, step: ScheduledStep) -> BatchT:
        """Bring that to the device."""
        with self._recorder.span("prepare"):
            return self._executor.prepare(step)

    def execute(self, batch: BatchT) -> LogitsT:
        """Run the decoder."""
        with self._recorder.span("execute"):
            return self._executor.execute(batch)

    def sample(self, batch: BatchT, logits: LogitsT) -> PendingResults:
        """Draw drafts, accept and commit blocks."""
        with self._recorder.span("sample"):
            return self._executor.sample(batch, logits)

    def update(self, pending: PendingResults) -> list[Progress]:
        """Wait for a step's results and take them."""
        with self._recorder.span("wait"):
            results = pending.wait()
        with self._recorder.span("update"):
            progress = self._scheduler.update(pending.step, results)
        self._recorder.gain(progress)
        return progress


class StepLoop(Protocol):
    """Runs steps."""

    def step(self) -> list[Progress]:
        """Start a step; returns what the results bring that are read."""

    def drain(self) -> None:
        """Let the steps in flight pass; no request is left that could gain anything."""


class SynchronousLoop(Generic[BatchT, LogitsT]):
    """Reads the results of every step before it starts the next."""

    def __init__(self, verbs: StepVerbs[BatchT, LogitsT]) -> None:
        self._verbs = verbs

    def step(self) -> list[Progress]:
        """See StepLoop."""
        step = self._verbs.schedule()
        batch = self._verbs.prepare(step)
        logits = self._verbs.execute(batch)
        pending = self._verbs.sample(batch, logits)
        return self._verbs.update(pending)

    def drain(self) -> None:
        """Nothing is in flight."""


class OverlappedLoop(Generic[BatchT, LogitsT]):
    """Starts result_lag further steps before it reads the results of a step: the device never waits for the host."""

    def __init__(self, verbs: StepVerbs[BatchT, LogitsT], result_lag: int) -> None:
        self._verbs = verbs
        self._result_lag = result_lag
        self._in_flight: deque[PendingResults] = deque()

    def step(self) -> list[Progress]:
        """See StepLoop."""
        step = self._verbs.schedule()
        batch = self._verbs.prepare(step)
        logits = self._verbs.execute(batch)
        self._in_flight.append(self._verbs.sample(batch, logits))
        return self._verbs.update(self._in_flight.popleft()) if len(self._in_flight) > self._result_lag else []

    def drain(self) -> None:
        """See StepLoop."""
        while self._in_flight:
            progress = self._verbs.update(self._in_flight.popleft())
            assert not progress, progress


def make_loop(verbs: StepVerbs[BatchT, LogitsT], result_lag: int) -> StepLoop:
    """The loop for a lag of so many steps."""
    return SynchronousLoop(verbs) if result_lag == 0 else OverlappedLoop(verbs, result_lag)
