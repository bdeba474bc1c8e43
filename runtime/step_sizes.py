"""Sizes that steps of fixed shapes are rounded up to: few, since every shape is a CUDA graph of its own. No torch.

What padding costs: a row of nobody's takes part in products only, which take the time of reading their weights up to
some 128 rows; logits of nobody's are one more product; a place without scores is a few thread blocks that end at once.
"""

from __future__ import annotations

from sparsespec.builder.trt.engine_io import row_bucket

_FEW, _COARSE_STEP, _COARSE_TO = 8, 16, 128


def rows_of(num_rows: int) -> int:
    """Rows of the graph that runs num_rows, at least 1: 1, 8, steps of 16 up to 128, then at most an eighth more."""
    if num_rows <= _FEW:
        return 1 if num_rows == 1 else _FEW
    if num_rows <= _COARSE_TO:
        return -(-num_rows // _COARSE_STEP) * _COARSE_STEP
    return row_bucket(num_rows)


def logits_of(num_logits: int) -> int:
    """Logits, where not all rows have them: next to a chunk of a prompt they are few, or cost little."""
    return max(_FEW, _power_of_two(num_logits))


def scored_of(num_scored: int, max_scored: int) -> int:
    """Places for scores: none, or 8, 16, 32 ... up to all there are."""
    return min(max_scored, max(_FEW, _power_of_two(num_scored))) if num_scored else 0


def sizes_up_to(num_rows: int) -> tuple[int, ...]:
    """All of rows_of that steps of up to num_rows rows come to, ascending."""
    sizes = [1]
    while sizes[-1] < num_rows:
        sizes.append(rows_of(sizes[-1] + 1))
    return tuple(sizes)


def _power_of_two(number: int) -> int:
    return 1 << (max(1, number) - 1).bit_length()
