"""What the memory of this GPU gives: a large read, alone and beside a few writes, a large copy, and gathers of the rows
that a draft reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from kernel_cases import kv_bytes
from kernel_steps import PreparedStep, draft_tokens, pool_rows
from kernel_timing import Work, captured, timed_in_turn

READ_WORDS = 2**30
LANES, LANE_WORDS = 32, 4  # 16 bytes a lane
WRITE_SHARES = (128, 64)  # scores of head_dim 128 and of 64: two planes of 2 bytes, where a key and a value have 4 * d


@dataclass(frozen=True)
class WriteCost:
    """What it costs to write a little of what is read, as scores are written beside keys and values."""

    share: int  # one byte is written for so many that are read
    slower: float  # times as long as the read alone


@dataclass(frozen=True)
class Ceilings:
    """GB/s."""

    read: float
    copy: float  # bytes read and bytes written
    writes: tuple[WriteCost, ...] = ()  # for each of WRITE_SHARES, if Triton is there


@dataclass(frozen=True)
class StreamShape:
    """One way to read or copy all of a tensor, block by block. Which is the fastest depends on the GPU."""

    loads: int  # of 16 bytes that each lane starts before it uses one, registers permitting
    warps: int  # of a program
    cache: str = ""  # modifier of loads, and of a copy's stores
    evict: str = ""  # their eviction policy, without a modifier
    resident: int | None = None  # programs of a multiprocessor, which go on to other blocks; None: one for each block

    @property
    def width(self) -> int:
        """Words that a program loads at once."""
        return self.warps * LANES * LANE_WORDS

    def blocks(self, words: Tensor) -> int:
        """That hold all words."""
        count, rest = divmod(words.numel(), self.loads * self.width)
        if rest:
            raise ValueError(f"expected whole blocks of {self.loads * self.width} words, found {words.numel()} words")
        return count

    def programs(self, words: Tensor) -> int:
        """As many as run at once, if they go on."""
        if self.resident is None:
            return self.blocks(words)
        multiprocessors = torch.cuda.get_device_properties(words.device).multi_processor_count
        return min(self.blocks(words), self.resident * multiprocessors)


READS = (
    StreamShape(4, 4),
    StreamShape(4, 4, cache=".cg"),
    StreamShape(4, 4, evict="evict_first"),
    StreamShape(4, 8, evict="evict_first"),
    StreamShape(8, 8),
    StreamShape(8, 8, evict="evict_first"),
    StreamShape(16, 1, evict="evict_first"),
    StreamShape(4, 8, resident=8),
    StreamShape(4, 8, evict="evict_first", resident=8),
    StreamShape(4, 16, evict="evict_first", resident=4),
    StreamShape(8, 16, evict="evict_first", resident=4),
)

COPIES = (
    StreamShape(4, 4),
    StreamShape(4, 4, evict="evict_first"),
    StreamShape(8, 4),
    StreamShape(8, 4, cache=".cg"),
    StreamShape(8, 4, evict="evict_first"),
    StreamShape(8, 8, evict="evict_first"),
    StreamShape(16, 4, evict="evict_first"),
    StreamShape(4, 8, evict="evict_first", resident=8),
    StreamShape(4, 16, evict="evict_first", resident=4),
    StreamShape(8, 8, resident=4),
    StreamShape(8, 8, evict="evict_first", resident=4),
)


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
    return measured_ceilings(torch.randn(READ_WORDS, device="cuda").view(torch.int32))


def measured_ceilings(words: Tensor) -> Ceilings:
    """The fastest read of these words [n] int32, the fastest copy of half of them, and the fastest reads that write."""
    reads, copies = read_works(words), copy_works(words[: len(words) // 2])
    writes = [write_works(words, share) for share in WRITE_SHARES] if _has_triton() else []
    times = iter(timed_in_turn([captured(work) for works in (reads, copies, *writes) for work in works]))
    read, copy, *written = (min(islice(times, len(works))) for works in (reads, copies, *writes))
    costs = (WriteCost(share, each / read) for share, each in zip(WRITE_SHARES, written, strict=False))
    return Ceilings(words.nbytes / read / 1e6, words.nbytes / copy / 1e6, tuple(costs))


def read_works(words: Tensor) -> list[Work]:
    """Torch's, and each of READS if Triton is there."""
    ours = [partial(read, words, shape) for shape in READS] if _has_triton() else []
    return [partial(torch.amax, words.view(torch.float32).view(1024, -1), dim=1), *ours]


def copy_works(words: Tensor) -> list[Work]:
    """To memory that they share: torch's, and each of COPIES if Triton is there."""
    target = torch.empty_like(words)
    ours = [partial(copy, words, target, shape) for shape in COPIES] if _has_triton() else []
    return [partial(target.copy_, words), *ours]


def write_works(words: Tensor, share: int) -> list[Work]:
    """Reads that write one word for each `share` that they read, to memory that they share."""
    target = words.new_empty(len(words) // share)
    return [partial(read_and_write, words, target, shape) for shape in READS]


def read_and_write(words: Tensor, target: Tensor, shape: StreamShape) -> Tensor:
    """As read. Each block of words also writes its part of target, whose words are as many for all blocks: sums."""
    programs = shape.programs(words)
    sums = words.new_empty(programs)
    written = target.numel() // shape.blocks(words)
    arguments = (words, sums, target, written, *_arguments(words, shape))
    _kernel("read_and_write")[(programs,)](*arguments, num_warps=shape.warps)
    return sums


def read(words: Tensor, shape: StreamShape) -> Tensor:
    """Sums, one for each program, of words [n] int32."""
    programs = shape.programs(words)
    sums = words.new_empty(programs)
    _kernel("read_sum")[(programs,)](words, sums, *_arguments(words, shape), num_warps=shape.warps)
    return sums


def copy(words: Tensor, target: Tensor, shape: StreamShape) -> None:
    """Both [n] int32."""
    _kernel("copy_words")[(shape.programs(words),)](words, target, *_arguments(words, shape), num_warps=shape.warps)


def _arguments(words: Tensor, shape: StreamShape) -> tuple[int, int, int, str, str]:
    return shape.blocks(words), shape.loads, shape.width, shape.cache, shape.evict


def gather_works(prepared: PreparedStep) -> list[Work]:
    """A step of gathers for each of GATHERS: what the layers' drafts read and nothing else. None without Triton."""
    if not _has_triton():
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
    kernel = _kernel("gather_sum")
    kernel[(len(sums),)](words, rows, sums, len(rows), width, padded, block, shape.cache, num_warps=shape.warps)
    return sums


def gather_gigabytes_per_s(prepared: PreparedStep, ms: float) -> float:
    """Of one layer's gather."""
    return kv_bytes(prepared.workload) / ms / 1e6


def _gather_all(pools: list[tuple[Tensor, Tensor]], shape: GatherShape, num_layers: int) -> None:
    for index in range(num_layers):
        gather(*pools[index % len(pools)], shape)


def _has_triton() -> bool:
    return find_spec("triton") is not None


def _kernel(name: str) -> Any:
    """Imported late, since it needs Triton."""
    return getattr(import_module("memory_kernels"), name)
