"""What the GPU did in a few steps: its kernels, and what of them is stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from sparsespec.runtime import gpu_timeline
from sparsespec.runtime.device.kernel_recorder import KernelRecorder
from sparsespec.runtime.gpu_timeline import KernelRun, Timeline

# Results keep the kernels between products and attention among the others.
KINDS = tuple((kind, parts) for kind, parts in gpu_timeline.KINDS if kind != "norms")


def record(step: Callable[[], object], num_steps: int) -> Sequence[KernelRun]:
    """Kernels of num_steps steps, in order of their starts."""
    recorder = KernelRecorder(torch.device("cuda"))
    origin = time.time_ns()
    recorder.start()
    for _ in range(num_steps):
        step()
    return recorder.stop(origin).kernels


def summarise(kernels: Sequence[KernelRun]) -> Timeline:
    """The means of whole steps; there is one at least."""
    return gpu_timeline.summarise(kernels, KINDS)
