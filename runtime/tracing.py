"""What the host does in a step, for whoever looks: not recorded, as NVTX ranges, or as a Chrome trace.

The trace is read by chrome://tracing and ui.perfetto.dev. It holds the host's side alone; what a GPU does meanwhile,
Nsight Systems shows beside the NVTX ranges of the same names.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Protocol

from sparsespec.builder.errors import InputError
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.scheduled_step import ScheduledStep
from sparsespec.runtime.scheduler import Scheduler

_NO_SPAN = nullcontext()


class Recorder(Protocol):
    """Told of everything in a step, from any thread."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """Around what is called name; spans of one thread nest."""

    def count(self, step: ScheduledStep, scheduler: Scheduler) -> None:
        """A step has just been scheduled."""


class NoRecorder:
    """Keeps nothing."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """See Recorder."""
        return _NO_SPAN

    def count(self, step: ScheduledStep, scheduler: Scheduler) -> None:
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

    def count(self, step: ScheduledStep, scheduler: Scheduler) -> None:
        """Nothing: NVTX has ranges only."""


@dataclass(frozen=True, slots=True)
class Span:
    """Some of a thread's time; from the trace's beginning."""

    name: str
    start_us: float
    duration_us: float
    thread: int  # threading.get_native_id

    def event(self) -> dict[str, object]:
        """As Chrome's trace has it: a complete event."""
        times = {"ts": self.start_us, "dur": self.duration_us}
        return {"name": self.name, "ph": "X", "pid": os.getpid(), "tid": self.thread, **times}


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What a step holds, and the KV cache once it is scheduled."""

    at_us: float
    prefill_rows: int
    draft_rows: int
    verify_rows: int
    slots: int  # requests that take part
    pages_used: int
    host_pages_used: int
    pages_out: int  # that the step copies to host memory
    pages_in: int
    kv_tokens: int  # verified tokens of running requests, as far as results have been read

    def events(self) -> list[dict[str, object]]:
        """As Chrome's trace has them: counter events, those of one unit in one chart."""
        rows = {"prefill": self.prefill_rows, "draft": self.draft_rows, "verify": self.verify_rows}
        charts = {
            "rows": rows,
            "requests": {"slots": self.slots},
            "KV pages used": {"pages": self.pages_used, "host pages": self.host_pages_used},
            "KV pages moved": {"out": self.pages_out, "in": self.pages_in},
            "KV tokens": {"tokens": self.kv_tokens},
        }
        at = {"ph": "C", "pid": os.getpid(), "ts": self.at_us}
        return [{"name": name, "args": values, **at} for name, values in charts.items()]


class HostTrace:
    """Keeps all spans and counts in memory, some hundred bytes each, until they are written."""

    def __init__(self) -> None:
        self.spans: list[Span] = []  # in the order in which they ended
        self.counts: list[StepCounts] = []
        self._start_ns = perf_counter_ns()
        self._threads: dict[int, str] = {}  # names

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """See Recorder."""
        start = self._now_us()
        try:
            yield
        finally:
            thread = threading.get_native_id()
            self.spans.append(Span(name, start, self._now_us() - start, thread))
            self._threads[thread] = threading.current_thread().name

    def count(self, step: ScheduledStep, scheduler: Scheduler) -> None:
        """See Recorder."""
        with self.span("count"):
            self.counts.append(self._counts(step, scheduler))

    def clear(self) -> None:
        """Forget what was kept so far."""
        self.spans.clear()
        self.counts.clear()

    def write(self, path: Path) -> None:
        """As Chrome's trace-event JSON. Raises InputError when path cannot be written."""
        names = [
            {"name": "thread_name", "ph": "M", "pid": os.getpid(), "tid": thread, "args": {"name": name}}
            for thread, name in self._threads.items()
        ]
        events = [*names, *(span.event() for span in self.spans)]
        events += [event for counts in self.counts for event in counts.events()]
        try:
            path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot write the trace: {error}") from error

    def _counts(self, step: ScheduledStep, scheduler: Scheduler) -> StepCounts:
        rows = [0] * len(Phase)
        for row in step.rows:
            rows[row.phase] += row.num_rows
        kv_cache = scheduler.kv_cache
        return StepCounts(
            at_us=self._now_us(),
            prefill_rows=rows[Phase.PREFILL],
            draft_rows=rows[Phase.DRAFT],
            verify_rows=rows[Phase.VERIFY],
            slots=len(step.rows),
            pages_used=kv_cache.num_pages - kv_cache.num_free_pages,
            host_pages_used=kv_cache.num_used_host_pages,
            pages_out=sum(len(move.pages) for move in step.offloads),
            pages_in=sum(len(move.pages) for move in step.restores),
            kv_tokens=scheduler.num_kv_tokens,
        )

    def _now_us(self) -> float:
        return (perf_counter_ns() - self._start_ns) / 1000
