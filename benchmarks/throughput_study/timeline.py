"""What the GPU did in a few steps: kernels by kind, and when it did nothing, from torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

# Kinds by what is in a kernel's name, the first that fits; the rest is "other".
KINDS = (
    ("select", ("pillar_select",)),
    ("attention", ("pillar", "append", "unite")),
    ("sampling", ("sample_rows", "accept_drafts", "step_rows")),
    ("gemm", ("gemm", "nvjet", "cutlass", "cublas", "splitk", "xmma", "gemv")),
)
OTHER = "other"
# A step's first kernel.
_FIRST = "step_rows"


@dataclass(frozen=True)
class KernelRun:
    """One kernel on the GPU; microseconds."""

    name: str
    start: float
    duration: float

    @property
    def end(self) -> float:
        """When it was done."""
        return self.start + self.duration


@dataclass(frozen=True)
class Timeline:
    """Steps as the GPU saw them; milliseconds a step. Kernels may overlap: parts can add up to more than the step."""

    num_steps: int
    step_ms: float
    by_kind: dict[str, float]
    kernels_per_step: float
    between_graphs_ms: float  # idle before a step's first kernel
    inside_graphs_ms: float  # idle elsewhere

    @property
    def idle_between_share(self) -> float:
        """Of a step."""
        return self.between_graphs_ms / self.step_ms


def record(step: Callable[[], object], num_steps: int) -> list[KernelRun]:
    """Kernels of num_steps steps, in order of their starts."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(num_steps):
            step()
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type.name == "CUDA"]
    runs = [KernelRun(each.name, each.time_range.start, each.time_range.elapsed_us()) for each in events]
    return sorted((run for run in runs if not run.name.startswith(("Mem", "gpu_"))), key=lambda run: run.start)


def summarise(runs: Sequence[KernelRun]) -> Timeline:
    """Whole steps: from the first kernel of the first to the first kernel of the last."""
    starts = [index for index, run in enumerate(runs) if _FIRST in run.name]
    assert len(starts) >= 2, "expected kernels of two steps at least"
    steps = runs[starts[0] : starts[-1]]
    count = len(starts) - 1
    by_kind: dict[str, float] = {}
    for run in steps:
        by_kind[kind_of(run.name)] = by_kind.get(kind_of(run.name), 0) + run.duration / 1e3 / count
    between, inside, busy_until = 0.0, 0.0, runs[starts[0]].start
    for run in runs[starts[0] : starts[-1] + 1]:
        gap = max(0.0, run.start - busy_until)
        between, inside = (between + gap, inside) if _FIRST in run.name else (between, inside + gap)
        busy_until = max(busy_until, run.end)
    length = (runs[starts[-1]].start - runs[starts[0]].start) / 1e3 / count
    return Timeline(count, length, by_kind, len(steps) / count, between / 1e3 / count, inside / 1e3 / count)


def kind_of(name: str) -> str:
    """One of KINDS, or other."""
    lower = name.lower()
    return next((kind for kind, parts in KINDS if any(part in lower for part in parts)), OTHER)
