"""Steps of fixed shapes: which shape serves a step, and on a GPU one CUDA graph for each shape that came up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from sparsespec.runtime.collector import collector_held
from sparsespec.runtime.sampling_params import SAMPLING_ALONE, LogitNeeds
from sparsespec.runtime.scheduled_step import ScheduledStep
from sparsespec.runtime.step_sizes import logits_of, rows_of, scored_of
from sparsespec.runtime.trt.device_stream import current_device

# Further shapes run without: each graph takes memory for good. Steps with chunks of prompts have very many shapes, so
# these leave half of the graphs to steps without.
MAX_GRAPHS = 256
_MOST_WITH_CHUNKS = MAX_GRAPHS // 2


@dataclass(frozen=True)
class StepShape:
    """What a graph is captured for; a step fills it up to padding."""

    num_rows: int
    num_logits: int
    num_scored: int
    every_row: bool  # whether all rows have logits, in order, as in all steps without chunks of prompts
    drafts_only: bool = False  # no block ends and no chunk: nothing is accepted and nothing selected
    needs: LogitNeeds = SAMPLING_ALONE  # of drafts alone no log-probabilities

    @staticmethod
    def of(step: ScheduledStep, max_scored: int) -> StepShape:
        """max_scored: places for scores; 0 if the drafter wants none. The step has rows."""
        landing, num_drafts = step.landing, len(step.rows) - len(step.landing)
        num_rows = num_drafts + sum([row.num_rows for row in landing])
        num_logits = num_drafts + sum([row.num_logits for row in landing])
        num_scored = scored_of(sum([row.scored for row in landing]), max_scored)
        needs = LogitNeeds.of(row.needs for row in step.rows)
        if num_logits != num_rows:
            return StepShape(rows_of(num_rows), logits_of(num_logits), num_scored, every_row=False, needs=needs)
        shape = StepShape.of_every_row(num_rows, num_scored)
        if landing:
            return replace(shape, needs=needs)
        return replace(shape, drafts_only=True, needs=replace(needs, logprobs=False))

    @staticmethod
    def of_every_row(num_rows: int, num_scored: int = 0) -> StepShape:
        """Of so many rows, all with logits; num_scored is one of scored_of."""
        return StepShape(rows_of(num_rows), rows_of(num_rows), num_scored, every_row=True)


@dataclass(frozen=True)
class CapturedGraph:
    """A graph, and what it costs."""

    graph: torch.cuda.CUDAGraph
    num_bytes: int  # of device memory that capturing it took


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all engines of a device, whichever is current.

    With one for each, all kernels of a process began 0.35 us later once a few had been used (docs/performance.md).
    """
    return torch.cuda.Stream(device)


class StepGraphs:
    """Runs steps by shape. A shape's first step runs as it is, for the last time if the shape is sure to come again.

    That is so without chunks of prompts; with them a second step has to come before the graph is captured.
    """

    def __init__(self, device: torch.device) -> None:
        """None is captured yet."""
        self._device = device
        self._captured: dict[StepShape, CapturedGraph] = {}
        self._came_up: list[StepShape] = []  # once, and may be captured when they do again
        self._stream = _capture_stream(device) if device.type == "cuda" else None
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @property
    def captured(self) -> dict[StepShape, CapturedGraph]:
        """Graphs by shape, in the order in which they were captured; none without a GPU."""
        return dict(self._captured)

    @property
    def num_captured(self) -> int:
        """Graphs so far; a step that captures one keeps the host for as long as some ten steps take."""
        return len(self._captured)

    def run(self, shape: StepShape, enqueue: Callable[[StepShape], None]) -> None:
        """Run a step; the host waits for nothing, but CUDA for the GPU when it loads a kernel.

        enqueue: a step of a shape, always the same; reads and writes memory at fixed addresses only. Not kept: it
        belongs to whoever owns the graphs, whose memory would then stay until the collector finds both.
        """
        captured = self._captured.get(shape)
        if captured is not None:
            captured.graph.replay()
            return
        with current_device(self._device):
            enqueue(shape)
            if self._stream is not None and self._is_due(shape):
                self._captured[shape] = self._capture(partial(enqueue, shape), self._stream)

    def _is_due(self, shape: StepShape) -> bool:
        if shape.every_row:
            return self.num_captured < MAX_GRAPHS
        if self.num_captured >= _MOST_WITH_CHUNKS:
            return False
        if shape in self._came_up:
            self._came_up.remove(shape)
            return True
        self._came_up.append(shape)
        return False

    def _capture(self, enqueue: Callable[[], None], stream: torch.cuda.Stream) -> CapturedGraph:
        """What has just run has all that it allocates on first use. All graphs share memory: they take turns.

        Without torch.cuda.graph, which waits for the device and gives its cached memory back each time: nothing that a
        capture does needs either, and the next step that runs without a graph would allocate all anew. But like it
        without the collector: what that destroys may be another engine's graph, which ends this capture with an error.
        """
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        self._make_room()
        before, _ = torch.cuda.mem_get_info(self._device)
        with torch.cuda.stream(stream), collector_held():
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                enqueue()
            finally:
                graph.capture_end()
        graph.instantiate()
        after, _ = torch.cuda.mem_get_info(self._device)
        return CapturedGraph(graph, before - after)

    def _make_room(self) -> None:
        """A graph needs no more than the step before it, which left that cached; captures cannot take it from there."""
        free, _ = torch.cuda.mem_get_info(self._device)
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        if free < cached:
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
