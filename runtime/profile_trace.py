"""Host and GPU in one trace, on one clock: spans and counts of every step, a GPU's kernels of some. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sparsespec.plugins.phase import Phase
from sparsespec.runtime.chrome_trace import write_trace
from sparsespec.runtime.gpu_timeline import GpuRecord
from sparsespec.runtime.gpu_trace import gpu_events
from sparsespec.runtime.scheduled_step import ScheduledStep
from sparsespec.runtime.scheduler import Progress
from sparsespec.runtime.step_counts import StepCounter
from sparsespec.runtime.tracing import HostTrace


class GpuRecorder(Protocol):
    """Records a GPU, once."""

    def start(self) -> None:
        """Wait until the GPU is idle, and begin."""

    def stop(self, origin_unix_ns: int) -> GpuRecord:
        """Wait until the GPU is idle, and end; in microseconds after origin_unix_ns."""


@dataclass(frozen=True)
class ProfiledSteps:
    """Whose kernels are recorded."""

    after: int  # steps without prompts that pass before
    number: int


@dataclass(frozen=True)
class GpuWindow:
    """What was recorded, and when; microseconds of the trace."""

    start: float
    end: float
    record: GpuRecord


class ProfileTrace:
    """tracing.Recorder: a host's trace, and in a window of its steps a GPU's."""

    def __init__(self, host: HostTrace, gpu: GpuRecorder | None, steps: ProfiledSteps) -> None:
        """gpu: None without one."""
        self.host = host
        self.window: GpuWindow | None = None  # once it is over
        self._gpu = gpu
        self.steps = steps
        self._num_passed = 0  # steps without prompts
        self._num_recorded = 0
        self._started: float | None = None  # while the GPU is recorded, since when

    def span(self, name: str) -> AbstractContextManager[None]:
        """See Recorder."""
        return self.host.span(name)

    def count(self, step: ScheduledStep, counter: StepCounter) -> None:
        """See Recorder."""
        self._move_window(step)
        self.host.count(step, counter)

    def gain(self, progress: Sequence[Progress]) -> None:
        """See Recorder."""
        self.host.gain(progress)

    def finish(self) -> None:
        """Nothing more is recorded."""
        self._close_window()
        self.host.finish()

    def write(self, path: Path) -> None:
        """As Chrome's trace-event JSON. Raises InputError when path cannot be written."""
        kernels = [] if self.window is None else gpu_events(self.window.record)
        write_trace(path, [*self.host.events(), *kernels])

    def _move_window(self, step: ScheduledStep) -> None:
        """The step is about to run."""
        if self._started is not None:
            self._num_recorded += 1
            if self._num_recorded == self.steps.number:
                self._close_window()
        elif self.window is None and self._num_passed == self.steps.after:
            self._open_window()
        self._num_passed += all(row.phase is not Phase.PREFILL for row in step.rows)

    def _open_window(self) -> None:
        if self._gpu is None:
            return
        with self.host.span("start of the GPU's record"):
            self._gpu.start()
        self._started = self.host.now_us

    def _close_window(self) -> None:
        if self._gpu is None or self._started is None:
            return
        end = self.host.now_us
        with self.host.span("end of the GPU's record"):
            record = self._gpu.stop(self.host.start_unix_ns)
        self.window = GpuWindow(self._started, end, record)
        self._started = None
