"""Numbers of TensorRT's types in numpy, which has no bfloat16 and no FP8: float32 stands in, rounded to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recorded_types import FLOATS, INTEGERS, DataType, TensorType

Array = NDArray[Any]

DTYPES = {
    torch.float32: DataType.FLOAT,
    torch.float16: DataType.HALF,
    torch.bfloat16: DataType.BF16,
    torch.float8_e4m3fn: DataType.FP8,
    torch.int32: DataType.INT32,
    torch.int64: DataType.INT64,
}
_STORED = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.BF16: np.float32,
    DataType.FP8: np.float32,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
}
_LARGEST_FP8 = 448.0


@dataclass(frozen=True)
class Value:
    """A tensor with numbers in it, all of them numbers of its type."""

    array: Array
    dtype: DataType

    @property
    def type(self) -> TensorType:
        """As layers see it."""
        is_vector = self.dtype in INTEGERS and self.array.ndim == 1
        contents = tuple(map(int, self.array)) if is_vector else None
        return TensorType(self.dtype, self.array.shape, contents)

    @property
    def wide(self) -> Array:
        """Floats in float32, for arithmetic that rounds once."""
        return self.array.astype(np.float32) if self.dtype in (*FLOATS, DataType.FP8) else self.array


def value_of(tensor: Tensor) -> Value:
    """A copy."""
    dtype = DTYPES[tensor.dtype]
    values = tensor.double() if dtype not in INTEGERS else tensor
    return Value(values.numpy().astype(_STORED[dtype]), dtype)


def rounded(values: Array, dtype: DataType) -> Array:
    """To the nearest number of the type, to the even one of two."""
    if dtype == DataType.BF16:
        return _to_bfloat16(values.astype(np.float32))
    if dtype == DataType.FP8:
        return _to_fp8(values)
    with np.errstate(over="ignore"):
        return values.astype(_STORED[dtype])


def _to_bfloat16(values: Array) -> Array:
    """Drops the lower half of float32's bits; NaN stays NaN."""
    bits = values.view(np.uint32).astype(np.uint64)
    nearest = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(values), values, nearest)


def _to_fp8(values: Array) -> Array:
    clamped = np.clip(values.astype(np.float32), -_LARGEST_FP8, _LARGEST_FP8)
    return torch.from_numpy(clamped).to(torch.float8_e4m3fn).float().numpy()
