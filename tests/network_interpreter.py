"""Runs a recorded network in numpy: one small function for each kind of layer, and no knowledge of who wrote it down.

Every layer is computed in float32 and rounded once, to the type that it gives. What is updated in place is updated in
the arrays that were handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from documented_plugins import inputs_of
from interpreter_attention import Attention, AttentionTensors, plan_of
from interpreter_values import Array, Value, rounded
from recorded_network import Recording
from recorded_ops import (
    Activation,
    Cast,
    Constant,
    Dequantize,
    Elementwise,
    Gather,
    MatrixMultiply,
    Op,
    Plugin,
    Quantize,
    Reduce,
    ShapeOf,
    Shuffle,
    Slice,
    Unary,
)
from recorded_types import UNKNOWN, ActivationType, ElementWiseOperation, MatrixOperation, UnaryOperation, require


def interpret(recording: Recording, given: Mapping[str, Value]) -> dict[str, Value]:
    """The outputs by name. Refused where a layer cannot take what it gets."""
    values = {number: _input(recording, number, given) for number in recording.inputs}
    for call in recording.calls:
        results = run(call.op, [values[number] for number in call.inputs])
        values.update(zip(call.outputs, results, strict=True))
    return {recording.tensors[number].name: values[number] for number in recording.outputs}


def run(op: Op, operands: Sequence[Value]) -> list[Value]:
    """What one layer gives."""
    expected = op.outputs([operand.type for operand in operands])
    if isinstance(op, Plugin):
        arrays = _plugin(op, operands)
    else:
        arrays = [rounded(_LAYERS[type(op)](op, *(operand.wide for operand in operands)), expected[0].dtype)]
    for array, kind in zip(arrays, expected, strict=True):
        require(array.shape == kind.shape, f"{op}: expected {kind}, found {array.shape}")
    return [Value(array, kind.dtype) for array, kind in zip(arrays, expected, strict=True)]


def _input(recording: Recording, number: int, given: Mapping[str, Value]) -> Value:
    tensor = recording.tensors[number]
    value = given[tensor.name]
    fits = len(value.array.shape) == len(tensor.type.shape) and all(
        declared in (UNKNOWN, size) for declared, size in zip(tensor.type.shape, value.array.shape, strict=True)
    )
    require(fits and value.dtype == tensor.type.dtype, f"{tensor.name}: expected {tensor.type}, found {value.type}")
    return value


def _constant(op: Constant) -> Array:
    return np.array(op.values).reshape(op.shape)


def _gather(op: Gather, data: Array, indices: Array) -> Array:
    known = (indices >= 0) & (indices < data.shape[op.axis])
    require(bool(known.all()), f"gather: indices up to {indices.max()} of {data.shape[op.axis]}")
    return np.take(data, indices, axis=op.axis)


def _same(_op: Cast, x: Array) -> Array:
    return x


def _shape(_op: ShapeOf, x: Array) -> Array:
    return np.array(x.shape)


def _slice(op: Slice, x: Array, *shape: Array) -> Array:
    sizes = [int(size) for size in (shape[0] if shape else op.shape)]
    along = zip(op.start, sizes, op.stride, strict=True)
    return x[tuple(slice(start, start + size * stride, stride) for start, size, stride in along)]


def _shuffle(op: Shuffle, x: Array) -> Array:
    return x if op.reshape_dims is None else x.reshape(op.reshape_dims)


def _elementwise(op: Elementwise, a: Array, b: Array) -> Array:
    functions = {
        ElementWiseOperation.SUM: np.add,
        ElementWiseOperation.PROD: np.multiply,
        ElementWiseOperation.DIV: np.divide,
        ElementWiseOperation.FLOOR_DIV: np.floor_divide,
    }
    result: Array = functions[op.op](a, b)
    return result


def _unary(op: Unary, x: Array) -> Array:
    result: Array = {UnaryOperation.SQRT: np.sqrt}[op.op](x)
    return result


def _reduce(op: Reduce, x: Array) -> Array:
    result: Array = np.mean(x, axis=op.numbers, keepdims=op.keep_dims)
    return result


def _activation(op: Activation, x: Array) -> Array:
    return {ActivationType.SIGMOID: _sigmoid}[op.kind](x)


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        result: Array = 1 / (1 + np.exp(-x))
    return result


def _matrix_multiply(op: MatrixMultiply, a: Array, b: Array) -> Array:
    left = a.T if op.op0 == MatrixOperation.TRANSPOSE else a
    right = b.T if op.op1 == MatrixOperation.TRANSPOSE else b
    return left @ right


def _quantize(_op: Quantize, x: Array, scale: Array) -> Array:
    return x / scale.item()


def _dequantize(_op: Dequantize, x: Array, scale: Array) -> Array:
    return x * scale.item()


_LAYERS: dict[type[Op], Callable[..., Array]] = {
    Constant: _constant,
    Gather: _gather,
    Cast: _same,
    ShapeOf: _shape,
    Slice: _slice,
    Shuffle: _shuffle,
    Elementwise: _elementwise,
    Unary: _unary,
    Reduce: _reduce,
    Activation: _activation,
    MatrixMultiply: _matrix_multiply,
    Quantize: _quantize,
    Dequantize: _dequantize,
}


def _plugin(op: Plugin, operands: Sequence[Value]) -> list[Array]:
    arrays = [operand.array for operand in operands]
    if op.name == "PillarPlan":
        return [plan_of(arrays)]
    fields = dict(op.fields)
    names = [each.name for each in inputs_of(op.name, fields)]
    tensors = AttentionTensors(**dict(zip(names, arrays, strict=True)))
    score_dtype = operands[names.index("scores" if tensors.scores is not None else "draft_lse")].dtype
    output = Attention(fields, tensors, operands[0].dtype, score_dtype).run()
    updated = (tensors.kv_pool, tensors.draft_lse, tensors.scores)
    return [output, *(each for each in updated if each is not None)]
