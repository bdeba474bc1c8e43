"""Steps of fixed shapes: which shape serves a step, and on a GPU one CUDA graph for each shape that came up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sparsespec.builder.trt.engine_io import row_bucket
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.scheduled_step import ScheduledStep
from sparsespec.runtime.trt.device_stream import current_device

# Further shapes run without: chunks of prompts come in very many, and each graph takes memory for good.
MAX_GRAPHS = 256


@dataclass(frozen=True)
class StepShape:
    """What a graph is captured for; a step fills it up to padding."""

    num_rows: int
    num_logits: int
    num_scored: int
    every_row: bool  # whether all rows have logits, in order
    drafts_only: bool  # no block ends and no chunk: nothing is accepted and nothing selected

    @staticmethod
    def of(step: ScheduledStep, scored: bool) -> StepShape:
        """scored: whether the drafter wants scores. The step has rows."""
        num_rows = sum(row.num_rows for row in step.rows)
        num_logits = sum(row.num_logits for row in step.rows)
        num_scored = sum(row.scored for row in step.rows) if scored else 0
        return StepShape(
            num_rows=row_bucket(num_rows),
            num_logits=row_bucket(max(1, num_logits)),
            num_scored=1 << (num_scored - 1).bit_length() if num_scored else 0,  # places without scores cost little
            every_row=num_logits == num_rows,
            drafts_only=all(row.phase == Phase.DRAFT for row in step.rows),
        )


@dataclass(frozen=True)
class CapturedGraph:
    """A graph, and what it costs."""

    graph: torch.cuda.CUDAGraph
    num_bytes: int  # of device memory that capturing it took


class StepGraphs:
    """Runs steps by shape. The second step of a shape runs as it is too, and is captured for those to come."""

    def __init__(self, run: Callable[[StepShape], None], device: torch.device) -> None:
        """run: enqueues a step of a shape; reads and writes memory at fixed addresses only."""
        self._run = run
        self._device = device
        self._captured: dict[StepShape, CapturedGraph] = {}
        self._came_up: dict[StepShape, int] = {}  # steps, of shapes that have no graph
        # Of the engine's own device, whichever is current.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @property
    def captured(self) -> dict[StepShape, CapturedGraph]:
        """Graphs by shape, in the order in which they were captured; none without a GPU."""
        return dict(self._captured)

    def run(self, shape: StepShape) -> None:
        """Enqueue a step; the host waits for nothing but to capture."""
        captured = self._captured.get(shape)
        if captured is not None:
            captured.graph.replay()
            return
        with current_device(self._device):
            self._run(shape)
            self._came_up[shape] = self._came_up.get(shape, 0) + 1
            if self._stream is not None and self._came_up[shape] == 2 and len(self._captured) < MAX_GRAPHS:
                self._captured[shape] = self._capture(shape)

    def _capture(self, shape: StepShape) -> CapturedGraph:
        """What has just run has all that it allocates on first use. All graphs share memory: they take turns."""
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        before, _ = torch.cuda.mem_get_info(self._device)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            self._run(shape)
        graph.instantiate()
        after, _ = torch.cuda.mem_get_info(self._device)
        return CapturedGraph(graph, before - after)
