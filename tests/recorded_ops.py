"""TensorRT's layers as values, each with what a strongly typed network refuses of it.

The rules hold for declared shapes, where sizes may be UNKNOWN, and for those of real arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from documented_plugins import output_types
from recorded_types import (
    FLOATS,
    INTEGERS,
    UNKNOWN,
    ActivationType,
    DataType,
    ElementWiseOperation,
    MatrixOperation,
    ReduceOperation,
    Shape,
    TensorType,
    UnaryOperation,
    require,
)

Types = Sequence[TensorType]


class Op(Protocol):
    """A layer without its tensors."""

    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        """What it gives for these inputs. Refused where it cannot take them."""


@dataclass(frozen=True)
class Constant:
    dtype: DataType
    shape: Shape
    values: tuple[float, ...]  # row by row

    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        is_vector = self.dtype in INTEGERS and len(self.shape) == 1
        return (TensorType(self.dtype, self.shape, tuple(map(int, self.values)) if is_vector else None),)


@dataclass(frozen=True)
class Gather:
    axis: int

    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        data, indices = inputs
        require(indices.dtype in INTEGERS, f"gather: indices are {indices}")
        require(0 <= self.axis < len(data.shape), f"gather: no axis {self.axis} in {data}")
        shape = (*data.shape[: self.axis], *indices.shape, *data.shape[self.axis + 1 :])
        return (TensorType(data.dtype, shape),)


@dataclass(frozen=True)
class Cast:
    to_type: DataType

    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        (x,) = inputs
        require(DataType.FP8 not in (x.dtype, self.to_type), "cast: FP8 is for quantize and dequantize")
        return (TensorType(self.to_type, x.shape, x.contents if self.to_type in INTEGERS else None),)


@dataclass(frozen=True)
class ShapeOf:
    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        (x,) = inputs
        return (TensorType(DataType.INT64, (len(x.shape),), x.shape),)


@dataclass(frozen=True)
class Slice:
    """A second input takes the place of `shape`."""

    start: Shape
    shape: Shape
    stride: Shape

    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        x = inputs[0]
        shape = self.shape if len(inputs) == 1 else inputs[1].contents
        require(shape is not None, "slice: its shape is no shape tensor")
        ranks = {len(each) for each in (x.shape, self.start, shape, self.stride)}
        require(len(ranks) == 1, f"slice: {self.start}, {shape} and {self.stride} of {x}")
        for extent, start, size, stride in zip(x.shape, self.start, shape, self.stride, strict=True):
            last = start + (size - 1) * stride
            require(start >= 0 and stride > 0 and size >= UNKNOWN, f"slice: {start}, {size}, {stride}")
            require(UNKNOWN in (extent, size) or last < extent, f"slice: index {last} of {extent}")
        return (TensorType(x.dtype, shape),)


@dataclass(frozen=True)
class Shuffle:
    """A reshape; None leaves the shape as it is."""

    reshape_dims: Shape | None = None

    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        (x,) = inputs
        if self.reshape_dims is None:
            return (x,)
        require(min(self.reshape_dims, default=1) > 0, f"shuffle: reshape_dims {self.reshape_dims}")
        fits = UNKNOWN in x.shape or math.prod(x.shape) == math.prod(self.reshape_dims)
        require(fits, f"shuffle: {x} as {self.reshape_dims}")
        return (TensorType(x.dtype, self.reshape_dims),)


@dataclass(frozen=True)
class Elementwise:
    op: ElementWiseOperation

    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        a, b = inputs
        require(a.dtype == b.dtype and a.dtype != DataType.FP8, f"{self.op.name}: types of {a} and {b}")
        require(len(a.shape) == len(b.shape), f"{self.op.name}: ranks of {a} and {b}")
        shape = tuple(_broadcast(*sizes) for sizes in zip(a.shape, b.shape, strict=True))
        return (TensorType(a.dtype, shape, self._contents(a, b)),)

    def _contents(self, a: TensorType, b: TensorType) -> Shape | None:
        if a.contents is None or b.contents is None or a.shape != b.shape:
            return None
        return tuple(self._number(*each) for each in zip(a.contents, b.contents, strict=True))

    def _number(self, a: int, b: int) -> int:
        if UNKNOWN in (a, b):
            return UNKNOWN
        require(self.op != ElementWiseOperation.FLOOR_DIV or b != 0, "FLOOR_DIV: by zero")
        return {
            ElementWiseOperation.SUM: a + b,
            ElementWiseOperation.PROD: a * b,
            ElementWiseOperation.DIV: int(a / b),
            ElementWiseOperation.FLOOR_DIV: a // b,
        }[self.op]


@dataclass(frozen=True)
class Unary:
    op: UnaryOperation

    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        return (_float(self.op.name, *inputs),)


@dataclass(frozen=True)
class Activation:
    kind: ActivationType

    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        return (_float(self.kind.name, *inputs),)


@dataclass(frozen=True)
class Reduce:
    op: ReduceOperation
    axes: int  # one bit each
    keep_dims: bool

    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        x = _float(self.op.name, *inputs)
        require(0 < self.axes < 1 << len(x.shape), f"reduce: axes {self.axes:b} of {x}")
        kept = [1 if axis in self.numbers else size for axis, size in enumerate(x.shape)]
        left = [size for axis, size in enumerate(x.shape) if axis not in self.numbers]
        return (TensorType(x.dtype, tuple(kept if self.keep_dims else left)),)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The axes, counted from 0."""
        return tuple(axis for axis in range(self.axes.bit_length()) if self.axes >> axis & 1)


@dataclass(frozen=True)
class MatrixMultiply:
    op0: MatrixOperation
    op1: MatrixOperation

    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        a, b = inputs
        require(a.dtype == b.dtype and a.dtype in FLOATS, f"matmul: types of {a} and {b}")
        require(len(a.shape) == len(b.shape) == 2, f"matmul: ranks of {a} and {b}")
        rows, inner = a.shape if self.op0 == MatrixOperation.NONE else a.shape[::-1]
        other, columns = b.shape if self.op1 == MatrixOperation.NONE else b.shape[::-1]
        require(UNKNOWN in (inner, other) or inner == other, f"matmul: inner sizes {inner} and {other}")
        return (TensorType(a.dtype, (rows, columns)),)


@dataclass(frozen=True)
class Quantize:
    """To FP8, with one scale for the tensor."""

    output_type: DataType

    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        x, scale = _float("quantize", inputs[0]), _one_scale(inputs[1])
        require(self.output_type == DataType.FP8, f"quantize: to {self.output_type.name}")
        require(scale.dtype in (DataType.FLOAT, x.dtype), f"quantize: scale {scale} of {x}")
        return (TensorType(DataType.FP8, x.shape),)


@dataclass(frozen=True)
class Dequantize:
    """From FP8, with one scale for the tensor."""

    output_type: DataType

    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        x, scale = inputs[0], _one_scale(inputs[1])
        require(x.dtype == DataType.FP8, f"dequantize: {x}")
        require(self.output_type in FLOATS, f"dequantize: to {self.output_type.name}")
        require(scale.dtype in (DataType.FLOAT, self.output_type), f"dequantize: scale {scale}")
        return (TensorType(self.output_type, x.shape),)


@dataclass(frozen=True)
class Plugin:
    name: str
    fields: tuple[tuple[str, int | float | str], ...]  # all of them, defaults too

    def outputs(self, inputs: Types) -> tuple[TensorType, ...]:
        return output_types(self.name, dict(self.fields), inputs)


def _broadcast(a: int, b: int) -> int:
    """An UNKNOWN size meets a known one: the run time sees whether they fit."""
    require(a == b or bool({a, b} & {1, UNKNOWN}), f"elementwise: sizes {a} and {b}")
    if 1 in (a, b):
        return b if a == 1 else a
    return max(a, b)


def _float(what: str, x: TensorType) -> TensorType:
    require(x.dtype in FLOATS, f"{what}: {x} is not of floats")
    return x


def _one_scale(scale: TensorType) -> TensorType:
    require(math.prod(scale.shape) == 1 and len(scale.shape) <= 1, f"scale {scale}: expected one number")
    return _float("scale", scale)
