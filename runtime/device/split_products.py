"""Products of few rows over long sums, in parts that whoever takes them adds up.

A product of few rows has few blocks of results, fewer than a GPU has multiprocessors: divided along the sum it keeps
all of them reading weights. cuBLAS divides some by itself, with a kernel of its own to add the parts, and others not,
which then take up to 1.7 times as long (docs/kernels.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sparsespec.plugins.limits import MAX_PARTS, MAX_SPLIT_HIDDEN_SIZE

# Of results: those that a thread block of cuBLAS has, or more.
_BLOCK_ROWS, _BLOCK_COLUMNS = 256, 64
# Numbers of a sum that make a part worth its while.
_LEAST_LENGTH, _LENGTH_MULTIPLE = 192, 64


def count_parts(num_rows: int, weight_shape: Sequence[int], num_multiprocessors: int) -> int:
    """1 to MAX_PARTS: as many as still find a multiprocessor each. weight_shape: [out, in]."""
    out_size, in_size = weight_shape
    num_blocks = -(-num_rows // _BLOCK_ROWS) * -(-out_size // _BLOCK_COLUMNS)
    fitting = [
        parts
        for parts in range(2, MAX_PARTS + 1)
        if out_size <= MAX_SPLIT_HIDDEN_SIZE
        and parts * num_blocks <= num_multiprocessors
        and in_size % (parts * _LENGTH_MULTIPLE) == 0
        and in_size // parts >= _LEAST_LENGTH
    ]
    return max(fitting, default=1)


def linear_parts(x: Tensor, weight: Tensor, num_parts: int) -> Tensor:
    """[num_parts, num_rows, out], rounded, whose sum is x [num_rows, in] times the transpose of weight [out, in]."""
    if num_parts == 1:
        return functional.linear(x, weight)[None]
    by_part = (num_parts, x.shape[1] // num_parts)
    return torch.bmm(x.view(len(x), *by_part).transpose(0, 1), weight.view(len(weight), *by_part).permute(1, 2, 0))
