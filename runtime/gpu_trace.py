"""A GPU's record as Chrome's trace has it: a process for each device, a row for each stream. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence

from sparsespec.runtime.chrome_trace import Event, complete_event, counter_event, process_name, thread_name
from sparsespec.runtime.gpu_timeline import GpuRecord, GpuStep, KernelRun, gpu_steps

_MOST_LANES = 100  # rows of one stream


def gpu_events(record: GpuRecord) -> list[Event]:
    """Kernels and copies, and how long the GPU was idle in each step and before the next."""
    runs = sorted((*record.kernels, *record.copies), key=lambda run: run.start)
    devices = sorted({run.device for run in runs})
    names = [event for device in devices for event in process_name(_process(device), f"GPU {device}", 1 + device)]
    idle = [_idle_event(step, record.kernels[0].device) for step in gpu_steps(record.kernels)]
    return [*names, *_rows(runs), *idle]


def _rows(runs: Sequence[KernelRun]) -> list[Event]:
    """Launches that start under the end of the one before get a further row: rows do not overlap."""
    ends: dict[int, float] = {}  # of rows, by their thread
    events: list[Event] = []
    for run in runs:
        process, lane = _process(run.device), _free_lane(run, ends)
        thread = _thread(run, lane)
        if thread not in ends:
            events.append(thread_name(process, thread, f"stream {run.stream}" + (", early" if lane else "")))
        ends[thread] = run.end
        events.append(complete_event(run.name, process, thread, run.start, run.duration))
    return events


def _free_lane(run: KernelRun, ends: dict[int, float]) -> int:
    lanes = range(_MOST_LANES)
    return next((lane for lane in lanes if ends.get(_thread(run, lane), run.start) <= run.start), _MOST_LANES - 1)


def _thread(run: KernelRun, lane: int) -> int:
    """One number for each device, stream and lane."""
    return (run.device * 10_000 + run.stream) * _MOST_LANES + lane


def _process(device: int) -> int:
    return os.getpid() + 1 + device


def _idle_event(step: GpuStep, device: int) -> Event:
    idle = {"inside the graph": step.idle_inside, "before the next": step.idle_after}
    return counter_event("GPU idle, us of the step", _process(device), step.start, idle)
