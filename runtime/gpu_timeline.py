"""What a GPU did in steps: kernels by kind, and when it did nothing. No torch; times in microseconds.

A step is told by its first kernel, step_rows, which only steps of fixed shapes have; what runs op by op counts as part
of the step before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Kinds = tuple[tuple[str, tuple[str, ...]], ...]

# Kinds by what is in a kernel's name, the first that fits; the rest is "other".
KINDS: Kinds = (
    ("select", ("pillar_select",)),
    ("attention", ("pillar", "append", "unite")),
    ("sampling", ("sample_rows", "accept_drafts", "step_rows")),
    ("norms", ("add_rms_norm", "silu_mul")),  # and the activation
    ("gemm", ("gemm", "nvjet", "cutlass", "cublas", "splitk", "xmma", "gemv")),
)
OTHER = "other"
_FIRST = "step_rows"


@dataclass(frozen=True, slots=True)
class KernelRun:
    """One kernel, or one copy, on the GPU."""

    name: str
    start: float
    duration: float
    device: int = 0
    stream: int = 0

    @property
    def end(self) -> float:
        """When it was done."""
        return self.start + self.duration


@dataclass(frozen=True)
class GpuRecord:
    """What a GPU ran, each in order of their starts."""

    kernels: tuple[KernelRun, ...]
    copies: tuple[KernelRun, ...]  # and memory that was set


@dataclass(frozen=True)
class GpuStep:
    """From a step's first kernel to the next step's. What is not idle is busy with one kernel at least."""

    start: float
    duration: float
    num_kernels: int
    idle_inside: float
    idle_after: float  # before the next step's first kernel: between two graphs

    @property
    def busy(self) -> float:
        """Kernels, where they overlap counted once."""
        return self.duration - self.idle_inside - self.idle_after


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


def kind_of(name: str, kinds: Kinds = KINDS) -> str:
    """One of kinds, or other."""
    lower = name.lower()
    return next((kind for kind, parts in kinds if any(part in lower for part in parts)), OTHER)


def gpu_steps(kernels: Sequence[KernelRun]) -> list[GpuStep]:
    """The whole steps among kernels, which are in order of their starts; of any streams."""
    idle, steps = _idle_before(kernels), []
    for first, after in pairwise(_first_kernels(kernels)):
        start, following = kernels[first].start, kernels[after].start
        steps.append(GpuStep(start, following - start, after - first, sum(idle[first + 1 : after]), idle[after]))
    return steps


def summarise(kernels: Sequence[KernelRun], kinds: Kinds = KINDS) -> Timeline:
    """The whole steps' means; there is one at least."""
    steps, marks = gpu_steps(kernels), _first_kernels(kernels)
    assert steps, "expected kernels of two steps at least"
    scale = 1e-3 / len(steps)
    by_kind: dict[str, float] = {}
    for run in kernels[marks[0] : marks[-1]]:
        kind = kind_of(run.name, kinds)
        by_kind[kind] = by_kind.get(kind, 0) + run.duration * scale
    return Timeline(
        num_steps=len(steps),
        step_ms=scale * sum(step.duration for step in steps),
        by_kind=by_kind,
        kernels_per_step=sum(step.num_kernels for step in steps) / len(steps),
        between_graphs_ms=scale * sum(step.idle_after for step in steps),
        inside_graphs_ms=scale * sum(step.idle_inside for step in steps),
    )


def _first_kernels(kernels: Sequence[KernelRun]) -> list[int]:
    return [place for place, run in enumerate(kernels) if _FIRST in run.name]


def _idle_before(kernels: Sequence[KernelRun]) -> list[float]:
    """For how long nothing had run when each started."""
    idle, busy_until = [], kernels[0].start if kernels else 0.0
    for run in kernels:
        idle.append(max(0.0, run.start - busy_until))
        busy_until = max(busy_until, run.end)
    return idle
