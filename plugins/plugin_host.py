"""Runs this project's TensorRT plugins, or anybody's IPluginV3 plugins, on torch tensors and without TensorRT.

A plugin goes through what TensorRT does with it: created for the build phase, asked for types, shapes, formats and
workspace, serialised, created again for the runtime phase, attached to a context, told the shapes, enqueued.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from ctypes import c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsespec.plugins.plugin_abi import FieldStruct, HostLibrary, PluginError
from sparsespec.plugins.plugin_handle import (
    DataType,
    EnginePhase,
    FieldType,
    PluginField,
    PluginHandle,
    PluginTensors,
    PreparedLaunch,
    TensorDesc,
    Workspace,
    pack_fields,
    unpack_fields,
)

__all__ = ["Plugin", "PluginError", "PluginLibrary", "plugin_field"]

# Shapes of one plugin that stay prepared; beyond, all are prepared anew.
MAX_LAUNCHES = 1024

_DATA_TYPES = {
    torch.float32: DataType.FLOAT32,
    torch.float16: DataType.FLOAT16,
    torch.bfloat16: DataType.BFLOAT16,
    torch.float8_e4m3fn: DataType.FP8,
    torch.int8: DataType.INT8,
    torch.int32: DataType.INT32,
    torch.int64: DataType.INT64,
    torch.uint8: DataType.UINT8,
    torch.bool: DataType.BOOL,
}
_TORCH_TYPES = {data_type: dtype for dtype, data_type in _DATA_TYPES.items()}

# Of one input: shape, type, number of its CUDA device (-1 for none), whether it is contiguous.
_InputKey = tuple[torch.Size, torch.dtype, int, bool]


def plugin_field(name: str, value: int | float | str) -> PluginField:
    """A field of one int32, one float32 or a text. PluginError for an int beyond int32."""
    if isinstance(value, str):
        text = value.encode()
        return PluginField(name, FieldType.CHAR, text, len(text))
    if isinstance(value, float):
        return PluginField(name, FieldType.FLOAT32, struct.pack("f", value), 1)
    if not -(2**31) <= value < 2**31:
        raise PluginError(-1, f"field {name}: expected an int32, got {value}")
    return PluginField(name, FieldType.INT32, struct.pack("i", value), 1)


class PluginLibrary:
    """A library that exports getCreators. Opened for as long as the process lives."""

    def __init__(self, path: Path, host: Path) -> None:
        """path: the plugin library. host: libsparsespec_plugin_host.so. PluginError if either is something else."""
        self._host = HostLibrary(host)
        self._library = self._host.new_handle("open", str(path).encode())
        count = self._host.number("num_creators", self._library)
        self.creator_names = tuple(self._host.text("creator_name", self._library, index) for index in range(count))

    def create(self, name: str, fields: Mapping[str, int | float | str]) -> Plugin:
        """A plugin that can run. PluginError if the creator refuses the fields."""
        built = self.create_handle(name, [plugin_field(*each) for each in fields.items()], EnginePhase.BUILD)
        runtime = self.create_handle(name, built.fields(), EnginePhase.RUNTIME)
        return Plugin(name, built, runtime.attach(with_context=True))

    def create_handle(self, name: str, fields: Sequence[PluginField], phase: EnginePhase) -> PluginHandle:
        """A plugin object as its creator makes it."""
        packed = pack_fields(fields)
        arguments = (self._creator(name), packed, len(packed), int(phase))
        return PluginHandle(self._host, self._host.new_handle("create", self._library, *arguments))

    def creator_identity(self, name: str) -> tuple[str, str, str]:
        """Name, version and namespace of a creator."""
        functions = ("creator_name", "creator_version", "creator_namespace")
        texts = [self._host.text(function, self._library, self._creator(name)) for function in functions]
        return texts[0], texts[1], texts[2]

    def field_names(self, name: str) -> tuple[PluginField, ...]:
        """The fields that a creator says it takes, without data."""
        creator = self._creator(name)
        count = self._host.number("creator_fields", self._library, creator, None, 0)
        structs = (FieldStruct * count)()
        self._host.number("creator_fields", self._library, creator, structs, count)
        return unpack_fields(structs)

    def _creator(self, name: str) -> int:
        if name not in self.creator_names:
            raise PluginError(-1, f"expected one of the plugins {', '.join(self.creator_names)}, got {name}")
        return self.creator_names.index(name)


@dataclass(frozen=True)
class _OwnOutput:
    """An output with memory of its own."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Launch:
    """What inputs of the same shapes, types and device share."""

    prepared: PreparedLaunch
    tensors: PluginTensors
    outputs: tuple[_OwnOutput | int, ...]  # or the input that the output is
    device: torch.device
    workspace: Workspace
    memory: ctypes.Array[c_void_p]  # of inputs, then outputs; filled anew by each run


class Plugin:
    """One plugin for one stream at a time: runs share a workspace, as in a TensorRT execution context."""

    def __init__(self, name: str, built: PluginHandle, context: PluginHandle) -> None:
        """built, context: what TensorRT keeps in its builder and in its execution context."""
        self._name = name
        self._built = built
        self._context = context
        self._aliases = built.aliases()
        self._launches: dict[tuple[_InputKey, ...], _Launch] = {}
        self._current: _Launch | None = None
        self._workspaces: list[Tensor] = []

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Enqueue on the current stream of the inputs' device; an aliased output is the input tensor itself.

        inputs: contiguous, on one CUDA device. The first run with new shapes checks them and may allocate the
        workspace: do it before capturing a CUDA graph. PluginError says what was expected and what came.
        """
        launch = self._launch(inputs)
        outputs = [
            inputs[each] if isinstance(each, int) else torch.empty(each.shape, dtype=each.dtype, device=launch.device)
            for each in launch.outputs
        ]
        launch.memory[:] = [each.data_ptr() for each in (*inputs, *outputs)]
        _enqueue(launch)
        return outputs

    def describe(self, inputs: Sequence[TensorDesc]) -> PluginTensors:
        """The inputs together with the outputs that the plugin says it will write."""
        types = self._built.output_types([each.dtype for each in inputs])
        shapes = self._built.output_shapes(inputs)
        outputs = (TensorDesc(shape, dtype) for shape, dtype in zip(shapes, types, strict=True))
        return PluginTensors(tuple(inputs), tuple(outputs))

    def _launch(self, inputs: Sequence[Tensor]) -> _Launch:
        """For these shapes; the plugin knows of them."""
        key = tuple([(each.shape, each.dtype, each.get_device(), each.is_contiguous()) for each in inputs])
        launch = self._launches.get(key)
        if launch is None:
            device = self._common_device(inputs)
            with torch.cuda.device(device):
                launch = self._launches[key] = self._prepare(inputs, device)
        if launch is not self._current:
            with torch.cuda.device(launch.device):
                self._context.on_shape_change(launch.tensors)
            self._current = launch
        return launch

    def _prepare(self, inputs: Sequence[Tensor], device: torch.device) -> _Launch:
        tensors = self.describe([self._describe_input(index, each) for index, each in enumerate(inputs)])
        self._check_formats(tensors)
        self._built.configure(tensors)
        if len(self._launches) >= MAX_LAUNCHES:
            self._launches.clear()
        workspace_size = self._built.workspace_size(tensors)
        return _Launch(
            prepared=self._context.prepare(tensors, workspace_size),
            tensors=tensors,
            outputs=tuple(
                _OwnOutput(desc.shape, _TORCH_TYPES[desc.dtype]) if alias is None else alias
                for desc, alias in zip(tensors.outputs, self._aliases, strict=True)
            ),
            device=device,
            workspace=self._workspace(workspace_size, device),
            memory=(c_void_p * (len(tensors.inputs) + len(tensors.outputs)))(),
        )

    def _common_device(self, inputs: Sequence[Tensor]) -> torch.device:
        devices = sorted({str(each.device) for each in inputs})
        if len(devices) != 1 or not devices[0].startswith("cuda"):
            got = ", ".join(devices) or "nothing"
            raise PluginError(-1, f"{self._name}: expected inputs on one CUDA device, got {got}")
        return inputs[0].device

    def _describe_input(self, index: int, tensor: Tensor) -> TensorDesc:
        where = f"{self._name}: input {index}: expected"
        if not tensor.is_contiguous():
            shape, stride = list(tensor.shape), list(tensor.stride())
            raise PluginError(-1, f"{where} a contiguous tensor, got shape {shape} with strides {stride}")
        if tensor.dtype not in _DATA_TYPES:
            raise PluginError(-1, f"{where} one of {', '.join(map(str, _DATA_TYPES))}, got {tensor.dtype}")
        return TensorDesc(tuple(tensor.shape), _DATA_TYPES[tensor.dtype])

    def _check_formats(self, tensors: PluginTensors) -> None:
        for position, desc in enumerate((*tensors.inputs, *tensors.outputs)):
            if not self._built.supports(position, tensors):
                kind = "the types before it" if position else "this plugin"
                message = f"{self._name}: tensor {position}: expected a type that fits {kind}, got {desc.dtype.name}"
                raise PluginError(-1, message)

    def _workspace(self, size: int, device: torch.device) -> Workspace:
        """Shared by all shapes that it is large enough for. Kept for good: a CUDA graph may hold its address."""
        fitting = [each for each in self._workspaces if each.device == device and each.numel() >= size]
        if not fitting:
            fitting = [torch.empty(size, dtype=torch.uint8, device=device)]
            self._workspaces.extend(fitting)
        return Workspace(fitting[0].data_ptr(), fitting[0].numel())


def _enqueue(launch: _Launch) -> None:
    stream = torch.cuda.current_stream(launch.device).cuda_stream
    if launch.device.index == torch.cuda.current_device():
        launch.prepared.enqueue(launch.memory, launch.workspace, stream)
        return
    with torch.cuda.device(launch.device):
        launch.prepared.enqueue(launch.memory, launch.workspace, stream)
