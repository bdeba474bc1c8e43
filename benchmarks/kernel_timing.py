"""Times of CUDA graphs that are replayed in turn, so that clocks which fall and rise slow all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

import torch

Work = Callable[[], object]  # enqueues one step
WARM_UPS, LEAST_ROUNDS, MOST_ROUNDS = 3, 5, 20
BUDGET_MS = 2000.0  # of graphs that are timed together

_Interval = tuple[torch.cuda.Event, torch.cuda.Event]


@dataclass(frozen=True)
class StepGraph:
    """A step to replay, in a graph or enqueued anew each time."""

    replay: Work
    work: Work  # owns what the graph reads
    in_graph: bool = True


def captured(work: Work) -> StepGraph:
    """Run once before, as plugins and compilers want it. RuntimeError where no graph can hold it."""
    work()
    torch.cuda.synchronize()
    graph, memory = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    try:
        with torch.cuda.graph(graph, pool=memory):
            work()
    except RuntimeError:
        _leave_capture(memory)
        raise
    return StepGraph(graph.replay, work)


def _leave_capture(memory: tuple[int, int]) -> None:
    """After a failed capture torch's stream, memory and random numbers are still in it: let out what can be."""
    device = torch.cuda.current_device()
    torch.cuda.set_stream(torch.cuda.default_stream())
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device, memory)
    with suppress(RuntimeError):
        fresh = torch.Generator(device=f"cuda:{device}")
        torch.cuda.default_generators[device].graphsafe_set_state(fresh.graphsafe_get_state())


def timed_in_turn(graphs: Sequence[StepGraph]) -> list[float]:
    """Median milliseconds of each. Nothing waits between replays, so what the host does is not timed."""
    first = _round(graphs)
    torch.cuda.synchronize()
    rounds = int(BUDGET_MS / max(sum(map(_milliseconds, first)), 0.001))
    count = WARM_UPS + min(MOST_ROUNDS, max(LEAST_ROUNDS, rounds))
    timed = [_round(graphs) for _ in range(count)][WARM_UPS:]
    torch.cuda.synchronize()
    return [median(map(_milliseconds, each)) for each in zip(*timed, strict=True)]


def _round(graphs: Sequence[StepGraph]) -> list[_Interval]:
    intervals = []
    for each in graphs:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        each.replay()
        end.record()
        intervals.append((start, end))
    return intervals


def _milliseconds(interval: _Interval) -> float:
    start, end = interval
    return float(start.elapsed_time(end))
