"""Graphs that an adaptive engine has from the start, so that a change of mind costs no capture while requests run."""

from __future__ import annotations

from dataclasses import replace

from sparsespec.runtime.device.graph_executor import GraphExecutor
from sparsespec.runtime.device.step_graphs import StepShape
from sparsespec.runtime.step_sizes import scored_of, sizes_up_to

# With more requests a capture takes no more than a few of their steps, and there are many shapes.
_MOST_REQUESTS = 64
# Beyond two for each request, which steps of evenly spread verifications come to.
_MORE_ROWS = 16


def capture_early(executor: GraphExecutor, draft_len: int) -> None:
    """Before the first request; the largest first, since all graphs share its memory. Without a GPU there are none."""
    if executor.memory.device.type != "cuda":
        return
    shapes = early_shapes(len(executor.memory.state.kv_len), draft_len, executor.max_scored)
    for shape in sorted(shapes, key=lambda shape: (shape.num_rows, shape.num_scored), reverse=True):
        if shape.num_rows <= executor.max_rows:
            executor.run_idle(shape, times=1)


def early_shapes(max_batch_size: int, draft_len: int, max_scored: int) -> list[StepShape]:
    """Of plain decoding; where requests are few, of drafts alone and verifications too, spread or all at once."""
    plain = [StepShape.of_every_row(size) for size in sizes_up_to(max_batch_size)]
    if max_batch_size > _MOST_REQUESTS or draft_len == 0:
        return plain
    drafts = [replace(shape, drafts_only=True) for shape in plain]
    most_rows = max_batch_size * (draft_len + 1)
    spread = _spread(max_batch_size, min(2 * max_batch_size + _MORE_ROWS, most_rows), max_scored)
    together = StepShape.of_every_row(most_rows, scored_of(max_batch_size, max_scored))
    return list(dict.fromkeys([*plain, *drafts, *spread, together]))


def _spread(max_batch_size: int, most_rows: int, max_scored: int) -> list[StepShape]:
    """Of steps in which some verify while others draft."""
    pairs = [
        (size, scored_of(count, max_scored))
        for size in sizes_up_to(most_rows)
        for count in range(1, min(size, max_batch_size) + 1)
    ]
    return [StepShape.of_every_row(size, places) for size, places in dict.fromkeys(pairs)]
