"""One engine at work: a context for each profile, and on a GPU a context and a CUDA graph for each bucket of rows.

A graph is valid as long as its context keeps shapes and memory, so each has a context of its own; all share one block
of activation memory, since they never run at the same time.
"""

from __future__ import annotations

import torch

from sparsespec.builder.errors import InputError
from sparsespec.builder.trt.engine_io import row_bucket
from sparsespec.runtime.trt.context import Bindings, BoundContext, check_bindings
from sparsespec.runtime.trt.device_stream import DeviceStream, current_device
from sparsespec.runtime.trt.engines import LoadedPart, TensorRTEngines


class EngineRunner:
    """Runs steps of one engine in stream order; the host waits for none but the first of a bucket."""

    def __init__(self, engines: TensorRTEngines, part: LoadedPart, bindings: Bindings, stream: DeviceStream) -> None:
        """EngineError for tensors that do not fit the engine, InputError for sizes beyond its profiles."""
        check_bindings(part, bindings)
        for profile in part.io.profiles:
            self._require(profile.excess(bindings.sizes), part)
        self._engines = engines
        self._part = part
        self._bindings = bindings
        self._stream = stream
        self._contexts: dict[int, BoundContext] = {}  # by profile
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by rows
        self._captured: list[BoundContext] = []  # what the graphs were captured from lives as long as they do
        self._most_logits = len(bindings.tensors[part.io.logits.name])

    @property
    def num_graphs(self) -> int:
        """Captured so far."""
        return len(self._graphs)

    def check(self, num_rows: int, num_logits: int) -> None:
        """InputError for more rows or logits than any profile has."""
        self._profile(num_rows, num_logits)

    def run(self, num_rows: int, num_logits: int) -> None:
        """Enqueue a step."""
        profile = self._profile(num_rows, num_logits)
        if profile not in self._contexts:
            self._contexts[profile] = self._context(profile)
        with current_device(self._stream.device), self._stream.after_current():
            self._contexts[profile].enqueue(num_rows, num_logits)

    def replay(self, num_rows: int) -> None:
        """The same for a step whose rows all need logits, by a graph where there is a GPU."""
        if self._stream.cuda is None:
            self.run(num_rows, num_rows)
            return
        rows = self._bucket(num_rows)
        if rows in self._graphs:
            self._graphs[rows].replay()
        else:
            self._graphs[rows] = self._capture(rows)

    def _capture(self, rows: int) -> torch.cuda.CUDAGraph:
        """Run the step once, and again into a graph: TensorRT prepares itself at the first enqueue of a shape."""
        context = self._context(self._profile(rows, rows))
        graph = torch.cuda.CUDAGraph()
        with current_device(self._stream.device):
            with self._stream.after_current():
                context.enqueue(rows, rows)
            if not self._enqueue_into(graph, context, rows):
                raise context.refused(f"a step of {rows} rows while it was captured")
        self._captured.append(context)
        return graph

    def _enqueue_into(self, graph: torch.cuda.CUDAGraph, context: BoundContext, rows: int) -> bool:
        """Whether that succeeded; other threads may use the GPU meanwhile."""
        current = torch.cuda.current_stream(self._stream.device)
        try:
            with torch.cuda.graph(graph, stream=self._stream.cuda, capture_error_mode="thread_local"):
                return context.try_enqueue(rows, rows)
        except RuntimeError as error:  # torch's word for a capture that came to nothing
            raise context.refused(f"to be captured ({error})") from error
        finally:
            torch.cuda.set_stream(current)  # a failed capture leaves its own

    def _bucket(self, num_rows: int) -> int:
        rows = min(row_bucket(num_rows), self._most_logits, self._part.io.profiles[0].most.num_rows)
        assert rows >= num_rows, (rows, num_rows)
        return rows

    def _context(self, profile: int) -> BoundContext:
        with current_device(self._stream.device):
            return BoundContext(self._engines, self._part, profile, self._bindings, self._stream)

    def _profile(self, num_rows: int, num_logits: int) -> int:
        for index, profile in enumerate(self._part.io.profiles):
            if num_rows <= profile.most.num_rows and num_logits <= profile.most.num_logits:
                return index
        most = self._part.io.profiles[-1].most
        raise InputError(
            f"{self._part.io.kind}.engine: expected at most {most.num_rows} rows and {most.num_logits} logits in a "
            f"step, found {num_rows} and {num_logits}"
        )

    def _require(self, excess: str | None, part: LoadedPart) -> None:
        if excess is not None:
            raise InputError(f"{part.io.kind}.engine: expected {excess}; run with less, or build it for more")
