"""What a step costs on this device, measured once for an engine: rows by steps of nobody's, memory by reading it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.runtime.cost_model import CostModel
from sparsespec.runtime.device.graph_executor import GraphExecutor
from sparsespec.runtime.device.latency_measurement import measure_latencies
from sparsespec.runtime.device.step_graphs import StepShape
from sparsespec.runtime.device.timing import STEPS, seconds_of
from sparsespec.runtime.step_sizes import rows_of

_MOST_READ = 2**31  # bytes
_FEWEST_ROWS = 8


@dataclass(frozen=True)
class ReadShares:
    """Of the bandwidth of a large read, what the kernels reach."""

    plain: float
    verify: float  # with scores and selection
    draft: float  # as shipped


# By docs/kernels.md, on an H200, for 96 requests at 8k (head_dim 128) and 512 at 4k (64): "plain decode", "verify with
# scores" and "select" together, and "draft as shipped", each over "read". FP8 by the ratio of its rows to bf16's.
_BF16 = {"wide": ReadShares(0.95, 0.84, 0.64), "narrow": ReadShares(0.92, 0.78, 0.34)}
_FP8 = {"wide": ReadShares(0.78, 0.69, 0.41), "narrow": ReadShares(0.62, 0.53, 0.16)}
_WIDE_HEADS = 128


def read_shares(engine: EngineConfig) -> ReadShares:
    """Of the engine's kernels."""
    shares = _FP8 if engine.build.kv_element_size == 1 else _BF16
    return shares["wide" if engine.model.head_dim >= _WIDE_HEADS else "narrow"]


def measure_costs(executor: GraphExecutor, engine: EngineConfig, most_rows: int) -> CostModel:
    """For steps of up to most_rows rows, before the first request. Takes seconds on a GPU: graphs are captured."""
    bandwidth, shares = measure_read(executor), read_shares(engine)
    costs = CostModel(
        rows=measure_rows(executor, row_counts(most_rows)),
        kv_bytes_per_token=engine.model.kv_bytes_per_token(engine.build.kv_element_size),
        plain_bandwidth=bandwidth * shares.plain,
        verify_bandwidth=bandwidth * shares.verify,
        draft_bandwidth=bandwidth * shares.draft,
    )
    return replace(costs, latencies=measure_latencies(executor, costs))


def row_counts(most_rows: int) -> tuple[int, ...]:
    """Where to measure: 1, then doubling from 8, then the most; all of them rows of a graph."""
    doubling = [_FEWEST_ROWS << power for power in range(most_rows.bit_length()) if _FEWEST_ROWS << power < most_rows]
    return tuple(dict.fromkeys([1, *doubling, rows_of(max(2, most_rows))]))


def measure_rows(executor: GraphExecutor, counts: Sequence[int]) -> tuple[tuple[int, float], ...]:
    """(rows, seconds) of steps without attention, the median of several. Leaves every slot as it was."""
    measured = []
    for count in counts:
        shape = StepShape.of_every_row(count)
        executor.run_idle(shape, times=1)  # captures the graph
        run = partial(executor.run_idle, shape, STEPS)
        measured.append((count, seconds_of(run, executor.memory.device) / STEPS))
    return tuple(measured)


def measure_read(executor: GraphExecutor) -> float:
    """Bytes per second of a sum over the KV pool, or as much of it as says enough."""
    pool = executor.memory.kv_pool.flatten().view(torch.float32)
    part = pool[: _MOST_READ // pool.element_size()]
    part.sum()
    return part.numel() * part.element_size() / seconds_of(part.sum, executor.memory.device)
