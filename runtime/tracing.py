"""What the host does in a step, for whoever looks: not recorded, as NVTX ranges, or kept for a Chrome trace.

This is the host's side alone: Nsight Systems shows a GPU's beside the NVTX ranges, `profile_trace` in the same trace.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns, time_ns
from typing import Protocol

from sparsespec.builder.errors import InputError
from sparsespec.runtime.chrome_trace import Event, complete_event, counter_event, process_name, thread_name, write_trace
from sparsespec.runtime.scheduled_step import ScheduledStep
from sparsespec.runtime.scheduler import Progress
from sparsespec.runtime.step_counts import StepCounter, StepCounts

MAX_STEPS = 20_000  # that a trace keeps, the first ones: some 40 MB
_NO_SPAN = nullcontext()


class Recorder(Protocol):
    """Told of everything in a step, from any thread."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """Around what is called name; spans of one thread nest."""

    def count(self, step: ScheduledStep, counter: StepCounter) -> None:
        """A step has just been scheduled; counter says what it holds."""

    def gain(self, progress: Sequence[Progress]) -> None:
        """The results of a step have just been read."""


class NoRecorder:
    """Keeps nothing."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """See Recorder."""
        return _NO_SPAN

    def count(self, step: ScheduledStep, counter: StepCounter) -> None:
        """See Recorder."""

    def gain(self, progress: Sequence[Progress]) -> None:
        """See Recorder."""


class NvtxRanges:
    """Ranges for Nsight Systems. Raises InputError where torch has no CUDA."""

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise InputError("nvtx: expected a CUDA device and a torch that was built with CUDA, found none")
        self._nvtx = torch.cuda.nvtx

    def span(self, name: str) -> AbstractContextManager[None]:
        """See Recorder."""
        return self._nvtx.range(name)

    def count(self, step: ScheduledStep, counter: StepCounter) -> None:
        """Nothing: NVTX has ranges only."""

    def gain(self, progress: Sequence[Progress]) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Span:
    """Some of a thread's time; from the trace's beginning."""

    name: str
    start_us: float
    duration_us: float
    thread: int  # threading.get_native_id

    @property
    def end_us(self) -> float:
        """When it ended."""
        return self.start_us + self.duration_us

    def event(self) -> Event:
        """As Chrome's trace has it."""
        return complete_event(self.name, os.getpid(), self.thread, self.start_us, self.duration_us)


@dataclass(frozen=True, slots=True)
class Counted:
    """A step, when it had been scheduled."""

    at_us: float
    step: StepCounts

    def events(self) -> list[Event]:
        """As Chrome's trace has them: those of one unit in one chart."""
        step = self.step
        charts: dict[str, dict[str, float]] = {
            "rows": {"prefill": step.prefill_rows, "draft": step.draft_rows, "verify": step.verify_rows},
            "requests": {"in the step": step.slots, "running": step.running, "waiting": step.waiting},
            "KV pages": {"used": step.pages_used, "free": step.pages_free},
            "host pages": {"used": step.host_pages_used},
            "KV pages moved": {"out": step.pages_out, "in": step.pages_in},
            "KV tokens": {"tokens": step.kv_tokens},
            "KV bytes of the step": {"read, at most": step.kv_bytes_read, "written": step.kv_bytes_written},
        }
        return [counter_event(name, os.getpid(), self.at_us, values) for name, values in charts.items()]


@dataclass(frozen=True, slots=True)
class Gained:
    """Tokens that joined outputs, when their step's results had been read."""

    at_us: float
    num_tokens: int

    def event(self) -> Event:
        """As Chrome's trace has it."""
        return counter_event("tokens out", os.getpid(), self.at_us, {"tokens": self.num_tokens})


class HostTrace:
    """Keeps what it is told, some 2 kB a step, until it is written: of the first max_steps steps."""

    def __init__(self, max_steps: int = MAX_STEPS) -> None:
        self.spans: list[Span] = []  # in the order in which they ended
        self.counts: list[Counted] = []
        self.gains: list[Gained] = []
        self.is_open = True  # whether anything more is kept
        self._max_steps = max_steps
        self._start_ns = perf_counter_ns()
        self._threads: dict[int, str] = {}  # names

    @property
    def is_full(self) -> bool:
        """Whether max_steps steps were kept, and further ones may have come."""
        return len(self.counts) == self._max_steps

    @property
    def now_us(self) -> float:
        """Since the trace's beginning."""
        return (perf_counter_ns() - self._start_ns) / 1000

    @property
    def start_unix_ns(self) -> int:
        """The trace's beginning on the clock that GPU profilers use, by how that clock stands now."""
        return time_ns() - (perf_counter_ns() - self._start_ns)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """See Recorder."""
        start = self.now_us
        try:
            yield
        finally:
            if self.is_open:
                thread = threading.get_native_id()
                self.spans.append(Span(name, start, self.now_us - start, thread))
                self._threads[thread] = threading.current_thread().name

    def count(self, step: ScheduledStep, counter: StepCounter) -> None:
        """See Recorder."""
        self.is_open = self.is_open and not self.is_full
        if self.is_open:
            with self.span("count"):
                self.counts.append(Counted(self.now_us, counter.count(step)))

    def gain(self, progress: Sequence[Progress]) -> None:
        """See Recorder."""
        if self.is_open:
            self.gains.append(Gained(self.now_us, sum(len(each.tokens) for each in progress)))

    def clear(self) -> None:
        """Forget what was kept so far."""
        self.spans.clear()
        self.counts.clear()
        self.gains.clear()

    def finish(self) -> None:
        """Nothing more is kept."""
        self.is_open = False

    def events(self) -> list[Event]:
        """Everything, as Chrome's trace has it."""
        process = os.getpid()
        names = [thread_name(process, thread, name) for thread, name in self._threads.items()]
        counts = [event for counted in self.counts for event in counted.events()]
        gains = [gained.event() for gained in self.gains]
        return [*process_name(process, "host", 0), *names, *(span.event() for span in self.spans), *counts, *gains]

    def write(self, path: Path) -> None:
        """As Chrome's trace-event JSON. Raises InputError when path cannot be written."""
        write_trace(path, self.events())
