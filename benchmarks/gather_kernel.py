"""Rows of a KV pool gathered and summed, in Triton: the least that any attention over them does."""

from __future__ import annotations

import triton
import triton.language as tl


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
