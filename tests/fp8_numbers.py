"""float8_e4m3fn from its definition, in numpy: 4 bits of exponent with a bias of 7, 3 of mantissa, no infinities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def nearest_fp8(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest number of the format, half to even, cut off at the largest."""
    numbers = _numbers()
    magnitude = np.minimum(np.abs(x), numbers[-1]).astype(np.float64)
    above = np.searchsorted(numbers, magnitude).clip(1, len(numbers) - 1)
    below = above - 1
    up = numbers[above] - magnitude
    down = magnitude - numbers[below]
    # Numbers are in the order of their codes: of two neighbours, one code is even.
    code = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return (np.sign(x) * numbers[code]).astype(np.float32)


def _numbers() -> NDArray[np.float64]:
    """Those above or equal to 0, by code; 127 is not a number."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    return np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
