"""Kernels in Triton that only read, write, copy or gather: what no kernel over the same bytes can beat."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read_sum(
    words,  # int32 [num_blocks * LOADS * WIDTH]
    sums,  # int32: one for each program
    num_blocks,
    LOADS: tl.constexpr,  # of 16 bytes that each lane has in flight
    WIDTH: tl.constexpr,  # words that a program loads with all lanes at once
    CACHE: tl.constexpr,
    EVICT: tl.constexpr,
):
    """The sums keep the compiler from leaving loads out."""
    place = tl.arange(0, LOADS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    total = tl.zeros((WIDTH,), tl.int32)
    for block in range(tl.program_id(0), num_blocks, tl.num_programs(0)):
        start = words + tl.cast(block, tl.int64) * (LOADS * WIDTH)
        # A lane adds up its own columns: nothing is exchanged before the end.
        total += tl.sum(tl.load(start + place, cache_modifier=CACHE, eviction_policy=EVICT), axis=0)
    tl.store(sums + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def read_and_write(
    words,  # as read_sum has them
    sums,
    target,  # int32 [num_blocks * WRITTEN]: of each block the sums of its first columns
    WRITTEN: tl.constexpr,  # WIDTH at most
    num_blocks,
    LOADS: tl.constexpr,
    WIDTH: tl.constexpr,
    CACHE: tl.constexpr,
    EVICT: tl.constexpr,
):
    """As read_sum, and a little is written all the while."""
    column = tl.arange(0, WIDTH)
    place = tl.arange(0, LOADS)[:, None] * WIDTH + column[None, :]
    total = tl.zeros((WIDTH,), tl.int32)
    for block in range(tl.program_id(0), num_blocks, tl.num_programs(0)):
        start = words + tl.cast(block, tl.int64) * (LOADS * WIDTH)
        columns = tl.sum(tl.load(start + place, cache_modifier=CACHE, eviction_policy=EVICT), axis=0)
        tl.store(target + block * WRITTEN + column, columns, mask=column < WRITTEN)
        total += columns
    tl.store(sums + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def copy_words(
    source,  # int32 [num_blocks * LOADS * WIDTH]
    target,  # the same
    num_blocks,
    LOADS: tl.constexpr,
    WIDTH: tl.constexpr,
    CACHE: tl.constexpr,
    EVICT: tl.constexpr,
):
    """Stores follow when all loads of a block are out."""
    place = tl.arange(0, LOADS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    for block in range(tl.program_id(0), num_blocks, tl.num_programs(0)):
        start = tl.cast(block, tl.int64) * (LOADS * WIDTH)
        taken = tl.load(source + start + place, cache_modifier=CACHE, eviction_policy=EVICT)
        tl.store(target + start + place, taken, cache_modifier=CACHE, eviction_policy=EVICT)


@triton.jit
def gather_sum(
    words,  # int32: rows of WIDTH
    rows,  # int32 [num_rows]
    sums,  # int32: one for each program
    num_rows,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,  # WIDTH or the power of two above
    BLOCK: tl.constexpr,  # rows of a program, a power of two
    CACHE: tl.constexpr,
):
    """All loads of a program are in flight at once, 16 bytes a lane. Integers take less work to sum than bf16."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + place, mask=place < num_rows, other=0).to(tl.int64)
    column = tl.arange(0, PADDED)[None, :]
    taken = tl.load(words + row[:, None] * WIDTH + column, mask=column < WIDTH, other=0, cache_modifier=CACHE)
    # Columns first: in one chain of additions registers would be used again before later loads are out.
    tl.store(sums + tl.program_id(0), tl.sum(tl.sum(taken, axis=0), axis=0))
