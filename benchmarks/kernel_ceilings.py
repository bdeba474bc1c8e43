"""What the memory of this GPU gives: a large read, a large copy, and gathers of the rows that a draft reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from kernel_cases import kv_bytes
from kernel_steps import PreparedStep, draft_tokens, pool_rows
from kernel_timing import Work, captured, timed_in_turn

READ_FLOATS = 2**30
LANES, LANE_WORDS = 32, 4  # 16 bytes a lane


@dataclass(frozen=True)
class Ceilings:
    """GB/s."""

    read: float
    copy: float  # bytes read and bytes written


@dataclass(frozen=True)
class GatherShape:
    """One way to gather. Which is the fastest depends on the rows."""

    loads: int  # of 16 bytes that each lane has in flight
    warps: int  # of a program
    cache: str = ".cg"  # past the L1

    def block(self, padded: int) -> int:
        """Rows of a program, of so many words."""
        return max(1, self.loads * self.warps * LANES * LANE_WORDS // padded)


GATHERS = (
    GatherShape(8, 4),
    GatherShape(8, 4, cache=""),
    GatherShape(4, 4),
    GatherShape(16, 4),
    GatherShape(8, 8),
    GatherShape(16, 1),
)


def device_ceilings() -> Ceilings:
    """By kernels that do little else. Takes 6 GB while it runs."""
    source = torch.randn(READ_FLOATS, device="cuda")
    half, other = source[: READ_FLOATS // 2], torch.empty(READ_FLOATS // 2, device="cuda")
    works: list[Work] = [lambda: torch.amax(source.view(1024, -1), dim=1), lambda: other.copy_(half)]
    read, copy = timed_in_turn([captured(work) for work in works])
    size = source.numel() * source.element_size()
    return Ceilings(size / read / 1e6, size / copy / 1e6)


def gather_works(prepared: PreparedStep) -> list[Work]:
    """A step of gathers for each of GATHERS: what the layers' drafts read and nothing else. None without Triton."""
    if find_spec("triton") is None:
        return []
    layers = prepared.layers[: prepared.workload.geometry.num_pools]
    words = [layer.kv_pool.view(torch.int32) for layer in layers]
    rows = [pool_rows(prepared, draft_tokens(prepared, layer)).flatten() for layer in layers]
    return [partial(_gather_all, list(zip(words, rows, strict=True)), shape, len(prepared.layers)) for shape in GATHERS]


def gather(words: Tensor, rows: Tensor, shape: GatherShape) -> Tensor:
    """Sums, one for each program, of rows [n] of words [..., width] int32."""
    width = words.shape[-1]
    padded = 1 << (width - 1).bit_length()
    block = shape.block(padded)
    sums = rows.new_empty(-(-len(rows) // block))
    kernel = import_module("gather_kernel").gather_sum
    kernel[(len(sums),)](words, rows, sums, len(rows), width, padded, block, shape.cache, num_warps=shape.warps)
    return sums


def gather_gigabytes_per_s(prepared: PreparedStep, ms: float) -> float:
    """Of one layer's gather."""
    return kv_bytes(prepared.workload) / ms / 1e6


def _gather_all(pools: list[tuple[Tensor, Tensor]], shape: GatherShape, num_layers: int) -> None:
    for index in range(num_layers):
        gather(*pools[index % len(pools)], shape)
