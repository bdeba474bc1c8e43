"""TensorRT without TensorRT: what write_network and PluginLayers use of its module, written down as values.

Refused is raised where a strongly typed TensorRT would refuse: at once where it does so at once, else by `recording`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

import recorded_types
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
from recorded_plugins import Field, Registry
from recorded_types import UNKNOWN, DataType, Shape, TensorType, require

_DTYPES = {"float32": DataType.FLOAT, "float16": DataType.HALF, "int32": DataType.INT32, "int64": DataType.INT64}


@dataclass(frozen=True)
class RecordedTensor:
    """A tensor, as it was in the end."""

    name: str
    type: TensorType
    dimension_names: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Call:
    """A layer and the numbers of its tensors."""

    op: Op
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Recording:
    """A whole network. Tensors are known by their places in `tensors`."""

    name: str
    tensors: tuple[RecordedTensor, ...]
    inputs: tuple[int, ...]
    calls: tuple[Call, ...]
    outputs: tuple[int, ...]

    def number(self, name: str) -> int:
        """Of the tensor with that name."""
        return [tensor.name for tensor in self.tensors].index(name)

    def consumers(self, number: int) -> list[Call]:
        """Layers that take this tensor, once for each time that they do."""
        return [call for call in self.calls for taken in call.inputs if taken == number]


class Tensor:
    """ITensor."""

    def __init__(self, network: Network, number: int, kind: TensorType) -> None:
        self.network = network
        self.number = number
        self.type = kind
        self.dimension_names: dict[int, str] = {}
        self._name = f"(Unnamed tensor {number})"

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        require(all(tensor is self or tensor.name != name for tensor in self.network.tensors), f"two tensors: {name}")
        self._name = name

    @property
    def dtype(self) -> DataType:
        return self.type.dtype

    @property
    def shape(self) -> Shape:
        return self.type.shape

    def set_dimension_name(self, index: int, name: str) -> None:
        require(self.number in self.network.inputs, f"{self.name}: dimensions of network inputs only have names")
        require(self.shape[index] == UNKNOWN, f"{self.name}: dimension {index} is {self.shape[index]}")
        self.dimension_names[index] = name


class Layer:
    """ILayer."""

    def __init__(self, network: Network, op: Op, inputs: Sequence[Tensor]) -> None:
        self._network = network
        self._op = op
        self._inputs = list(inputs)
        self._name = f"(Unnamed Layer* {len(network.layers)}) [{type(op).__name__}]"
        self._outputs = [network.add_tensor(kind) for kind in self._output_types()]

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        require(all(layer is self or layer.name != name for layer in self._network.layers), f"two layers: {name}")
        self._name = name

    @property
    def reshape_dims(self) -> Shape | None:
        return self._op.reshape_dims if isinstance(self._op, Shuffle) else None

    @reshape_dims.setter
    def reshape_dims(self, dims: Sequence[int]) -> None:
        require(isinstance(self._op, Shuffle), f"{self.name} does not reshape")
        self._op = Shuffle(tuple(dims))
        self._update()

    def get_output(self, index: int) -> Tensor:
        require(0 <= index < len(self._outputs), f"{self.name}: no output {index}")
        return self._outputs[index]

    def set_input(self, index: int, tensor: Tensor) -> None:
        require(isinstance(self._op, Slice) and index == 2, f"{self.name}: input {index} is not for the recorder")
        self._inputs = [self._inputs[0], tensor]
        self._update()

    def call(self) -> Call:
        """As a value."""
        return Call(self._op, self.name, _numbers(self._inputs), _numbers(self._outputs))

    def takes(self, tensor: Tensor) -> bool:
        return any(each is tensor for each in self._inputs)

    def _output_types(self) -> tuple[TensorType, ...]:
        return self._op.outputs([tensor.type for tensor in self._inputs])

    def _update(self) -> None:
        used = any(layer.takes(tensor) for layer in self._network.layers for tensor in self._outputs)
        require(not used, f"{self.name} changes after another layer took what it gives")
        for tensor, kind in zip(self._outputs, self._output_types(), strict=True):
            tensor.type = kind


class Network:
    """INetworkDefinition."""

    def __init__(self) -> None:
        self.name = ""
        self.tensors: list[Tensor] = []
        self.layers: list[Layer] = []
        self.inputs: list[int] = []
        self._outputs: list[int] = []
        # TensorRT reads constants when it builds: until then their owner must keep them.
        self._constants: list[weakref.ref[NDArray[Any]]] = []

    def recording(self) -> Recording:
        """All of it as values."""
        require(all(constant() is not None for constant in self._constants), "the memory of a constant is gone")
        require(bool(self._outputs), "a network without outputs")
        tensors = tuple(
            RecordedTensor(each.name, each.type, tuple(sorted(each.dimension_names.items()))) for each in self.tensors
        )
        calls = tuple(layer.call() for layer in self.layers)
        return Recording(self.name, tensors, tuple(self.inputs), calls, tuple(self._outputs))

    def add_tensor(self, kind: TensorType) -> Tensor:
        """Of a layer, or an input."""
        self.tensors.append(Tensor(self, len(self.tensors), kind))
        return self.tensors[-1]

    def add_input(self, name: str, dtype: DataType, shape: Sequence[int]) -> Tensor:
        require(min(shape, default=0) >= UNKNOWN, f"{name}: shape {shape}")
        tensor = self.add_tensor(TensorType(dtype, tuple(shape)))
        tensor.name = name
        self.inputs.append(tensor.number)
        return tensor

    def mark_output(self, tensor: Tensor) -> None:
        require(tensor.number not in (*self.inputs, *self._outputs), f"{tensor.name}: an input, or marked already")
        self._outputs.append(tensor.number)

    def add_constant(self, shape: Sequence[int], weights: NDArray[Any]) -> Layer:
        require(tuple(shape) == weights.shape and weights.flags.c_contiguous, f"constant: {weights.shape} as {shape}")
        require(weights.dtype.name in _DTYPES, f"constant: {weights.dtype}")
        self._constants.append(weakref.ref(weights))
        return self._add(Constant(_DTYPES[weights.dtype.name], weights.shape, tuple(weights.ravel().tolist())))

    def add_gather(self, input: Tensor, indices: Tensor, axis: int) -> Layer:
        return self._add(Gather(axis), input, indices)

    def add_cast(self, input: Tensor, to_type: DataType) -> Layer:
        return self._add(Cast(to_type), input)

    def add_shape(self, input: Tensor) -> Layer:
        return self._add(ShapeOf(), input)

    def add_slice(self, input: Tensor, start: Sequence[int], shape: Sequence[int], stride: Sequence[int]) -> Layer:
        return self._add(Slice(tuple(start), tuple(shape), tuple(stride)), input)

    def add_shuffle(self, input: Tensor) -> Layer:
        return self._add(Shuffle(), input)

    def add_elementwise(self, input1: Tensor, input2: Tensor, op: recorded_types.ElementWiseOperation) -> Layer:
        return self._add(Elementwise(op), input1, input2)

    def add_unary(self, input: Tensor, op: recorded_types.UnaryOperation) -> Layer:
        return self._add(Unary(op), input)

    def add_reduce(self, input: Tensor, op: recorded_types.ReduceOperation, axes: int, keep_dims: bool) -> Layer:
        return self._add(Reduce(op, axes, keep_dims), input)

    def add_activation(self, input: Tensor, type: recorded_types.ActivationType) -> Layer:
        return self._add(Activation(type), input)

    def add_matrix_multiply(
        self,
        input0: Tensor,
        op0: recorded_types.MatrixOperation,
        input1: Tensor,
        op1: recorded_types.MatrixOperation,
    ) -> Layer:
        return self._add(MatrixMultiply(op0, op1), input0, input1)

    def add_quantize(self, input: Tensor, scale: Tensor, output_type: DataType) -> Layer:
        return self._add(Quantize(output_type), input, scale)

    def add_dequantize(self, input: Tensor, scale: Tensor, output_type: DataType) -> Layer:
        return self._add(Dequantize(output_type), input, scale)

    def add_plugin_v3(self, inputs: Sequence[Tensor], shape_inputs: Sequence[Tensor], plugin: Plugin) -> Layer:
        require(not shape_inputs, f"{plugin.name}: shape inputs")
        return self._add(plugin, *inputs)

    def _add(self, op: Op, *inputs: Tensor) -> Layer:
        require(all(tensor.network is self for tensor in inputs), "a tensor of another network")
        self.layers.append(Layer(self, op, inputs))
        return self.layers[-1]


class RecordingTensorRT:
    """The module `tensorrt`."""

    DataType = recorded_types.DataType
    MatrixOperation = recorded_types.MatrixOperation
    ElementWiseOperation = recorded_types.ElementWiseOperation
    UnaryOperation = recorded_types.UnaryOperation
    ReduceOperation = recorded_types.ReduceOperation
    ActivationType = recorded_types.ActivationType
    PluginFieldType = recorded_types.PluginFieldType
    TensorRTPhase = recorded_types.TensorRTPhase
    PluginField = Field

    def __init__(self) -> None:
        self._registry = Registry()

    def PluginFieldCollection(self, fields: Sequence[Field]) -> Sequence[Field]:
        return tuple(fields)

    def get_plugin_registry(self) -> Registry:
        return self._registry


def _numbers(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(tensor.number for tensor in tensors)
