"""How long work takes on the device that it is enqueued on, or on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from sparsespec.runtime.trt.device_stream import current_device

STEPS = 8  # that are timed together, so that starting the first one does not count
_ROUNDS = 5


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """The median of several runs."""
    timed = _on_gpu if device.type == "cuda" else _on_cpu
    with current_device(device):
        return median(timed(run) for _ in range(_ROUNDS))


def _on_gpu(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _on_cpu(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start
