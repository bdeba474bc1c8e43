"""Times of GPU work in CUDA graphs that finds nothing of what it reads in the L2 cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

Works = Sequence[Callable[[], object]]  # what enqueues one product each
WARM_UPS, REPEATS = 5, 50
BEYOND_L2_BYTES = 2**29  # several times the L2 cache of any GPU


def cold_microseconds(ways: Sequence[Works], stream: torch.cuda.Stream) -> tuple[float, ...]:
    """For each of `ways`, the median time of one of its works when nothing that they read is in the L2 cache.

    One replay of each way in turn, since clocks fall and rise: what slows one slows all.
    """
    other = torch.zeros(1024, BEYOND_L2_BYTES // 4096, device="cuda")
    graphs = [captured(works, stream) for works in ways]
    rounds = [[_replay_time(graph, other) for graph in graphs] for _ in range(WARM_UPS + REPEATS)][WARM_UPS:]
    times = zip(*rounds, strict=True)
    return tuple(median(each) * 1000 / len(works) for each, works in zip(times, ways, strict=True))


def captured(works: Works, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """All of them, one after another; run once before, as TensorRT wants it."""
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for work in works:
            work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for work in works:
            work()
    return graph


def _replay_time(graph: torch.cuda.CUDAGraph, other: Tensor) -> float:
    """Milliseconds. `other` is read, not written: lines that have to be written back would be timed too."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.amax(other, dim=1)  # takes longer than the host takes to enqueue what follows
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
