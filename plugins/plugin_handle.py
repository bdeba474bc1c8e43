"""One plugin object, asked by hand what TensorRT asks it: for tests, and for `Plugin.run`."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from ctypes import c_int32, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from sparsespec.plugins.plugin_abi import MAX_DIMS, FieldStruct, HostLibrary, PluginError, TensorsStruct, TensorStruct


class DataType(IntEnum):
    """nvinfer1::DataType."""

    FLOAT32 = 0
    FLOAT16 = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6  # e4m3
    BFLOAT16 = 7
    INT64 = 8


class FieldType(IntEnum):
    """nvinfer1::PluginFieldType."""

    FLOAT16 = 0
    FLOAT32 = 1
    FLOAT64 = 2
    INT8 = 3
    INT16 = 4
    INT32 = 5
    CHAR = 6
    INT64 = 10


KindT = TypeVar("KindT", DataType, FieldType)


class EnginePhase(IntEnum):
    """nvinfer1::TensorRTPhase."""

    BUILD = 0
    RUNTIME = 1


FIELD_BYTES = {
    FieldType.FLOAT16: 2,
    FieldType.FLOAT32: 4,
    FieldType.FLOAT64: 8,
    FieldType.INT8: 1,
    FieldType.INT16: 2,
    FieldType.INT32: 4,
    FieldType.CHAR: 1,
    FieldType.INT64: 8,
}


@dataclass(frozen=True)
class PluginField:
    """nvinfer1::PluginField; data of None is a null pointer, as in a creator's list of field names."""

    name: str
    type: FieldType
    data: bytes | None
    length: int


@dataclass(frozen=True)
class TensorDesc:
    """A tensor without its memory. format: nvinfer1::TensorFormat, 0 is linear."""

    shape: tuple[int, ...]
    dtype: DataType
    format: int = 0


@dataclass(frozen=True)
class Workspace:
    """Memory that a plugin may use while it runs; address 0 for none. size: bytes."""

    address: int
    size: int


@dataclass(frozen=True)
class PluginTensors:
    """The tensors of one plugin, in its order."""

    inputs: tuple[TensorDesc, ...]
    outputs: tuple[TensorDesc, ...]


def pack_fields(fields: Sequence[PluginField]) -> ctypes.Array[FieldStruct]:
    """The fields for C, which do not outlive `fields`."""
    packed = (FieldStruct * len(fields))()
    for struct, field in zip(packed, fields, strict=True):
        struct.name = field.name.encode()
        struct.data = None if field.data is None else ctypes.cast(ctypes.c_char_p(field.data), c_void_p)
        struct.type = field.type
        struct.length = field.length
    return packed


def unpack_fields(structs: ctypes.Array[FieldStruct]) -> tuple[PluginField, ...]:
    """A copy of fields that C gave."""
    return tuple(_unpack_field(struct) for struct in structs)


def _unpack_field(struct: FieldStruct) -> PluginField:
    kind = _known(FieldType, struct.type)
    data = None if struct.data is None else ctypes.string_at(struct.data, FIELD_BYTES[kind] * struct.length)
    return PluginField(struct.name.decode(), kind, data, struct.length)


def _known(kinds: type[KindT], number: int) -> KindT:
    try:
        return kinds(number)
    except ValueError:
        listed = ", ".join(f"{kind.name} ({kind.value})" for kind in kinds)
        raise PluginError(-1, f"expected a {kinds.__name__} of {listed}, got {number}") from None


def _fill(struct: TensorStruct, desc: TensorDesc) -> None:
    if len(desc.shape) > MAX_DIMS:
        raise PluginError(-1, f"expected tensors of at most {MAX_DIMS} dimensions, got shape {list(desc.shape)}")
    struct.type, struct.format, struct.rank = desc.dtype, desc.format, len(desc.shape)
    struct.sizes[: len(desc.shape)] = desc.shape


def _pack(tensors: PluginTensors) -> TensorsStruct:
    descs = (*tensors.inputs, *tensors.outputs)
    structs = (TensorStruct * len(descs))()
    for struct, desc in zip(structs, descs, strict=True):
        _fill(struct, desc)
    return TensorsStruct(structs, len(tensors.inputs), len(tensors.outputs))


class PreparedLaunch:
    """A launch with all that describes its tensors; memory comes with each enqueue."""

    def __init__(self, host: HostLibrary, plugin: PluginHandle, handle: c_void_p) -> None:
        self._host = host
        self._plugin = plugin  # the launch refers to it
        self._handle = handle
        weakref.finalize(self, host.release, "discard", handle)

    def enqueue(self, memory: ctypes.Array[c_void_p], workspace: Workspace, stream: int) -> None:
        """Launch. memory: addresses of the inputs, then of the outputs. PluginError with the plugin's code."""
        self._host.check("enqueue", self._handle, memory, workspace.address, workspace.size, stream)


class PluginHandle:
    """One IPluginV3; every method is one of its callbacks. PluginError where the plugin refuses."""

    def __init__(self, host: HostLibrary, handle: c_void_p, owner: PluginHandle | None = None) -> None:
        """owner: outlives this one."""
        self._host = host
        self._handle = handle
        self._owner = owner
        weakref.finalize(self, host.release, "destroy", handle)

    def identity(self) -> tuple[str, str, str]:
        """Name, version and namespace."""
        name, version, namespace = self._host.text("identity", self._handle).split("\n")[:3]
        return name, version, namespace

    def clone(self) -> PluginHandle:
        """A copy of its own."""
        return PluginHandle(self._host, self._host.new_handle("clone", self._handle))

    def attach(self, with_context: bool) -> PluginHandle:
        """The plugin of an execution context; without one its IPluginResourceContext is null."""
        return PluginHandle(self._host, self._host.new_handle("attach", self._handle, int(with_context)), owner=self)

    def fields(self) -> tuple[PluginField, ...]:
        """What getFieldsToSerialize gives."""
        count = self._host.number("serialise", self._handle, None, 0)
        structs = (FieldStruct * count)()
        self._host.number("serialise", self._handle, structs, count)
        return unpack_fields(structs)

    def aliases(self) -> tuple[int | None, ...]:
        """For each output the input whose memory it is, or None."""
        count = self._host.number("num_outputs", self._handle)
        inputs = (self._host.alias(self._handle, output) for output in range(count))
        return tuple(None if index < 0 else index for index in inputs)

    def output_types(self, inputs: Sequence[DataType]) -> tuple[DataType, ...]:
        """Types of all outputs."""
        num_outputs = self._host.number("num_outputs", self._handle)
        types = (c_int32 * (len(inputs) + num_outputs))(*inputs)
        self._host.check("output_types", self._handle, types, len(inputs), num_outputs)
        return tuple(_known(DataType, each) for each in types[len(inputs) :])

    def output_shapes(self, inputs: Sequence[TensorDesc], symbolic: bool = False) -> tuple[tuple[int, ...], ...]:
        """Shapes of all outputs. symbolic: the plugin sees no size as a constant."""
        num_outputs = self._host.number("num_outputs", self._handle)
        structs = (TensorStruct * (len(inputs) + num_outputs))()
        for index, desc in enumerate(inputs):
            _fill(structs[index], desc)
        self._host.check("output_shapes", self._handle, structs, len(inputs), num_outputs, int(symbolic))
        return tuple(tuple(each.sizes[: each.rank]) for each in structs[len(inputs) :])

    def supports(self, position: int, tensors: PluginTensors) -> bool:
        """Whether type and format at this place among inputs and outputs fit those before it."""
        return self._host.number("supports", self._handle, position, _pack(tensors)) == 1

    def configure(self, tensors: PluginTensors) -> None:
        """configurePlugin, with these shapes as minimum, optimum and maximum; -1 is a size that is not known."""
        self._host.check("configure", self._handle, _pack(tensors))

    def workspace_size(self, tensors: PluginTensors) -> int:
        """Bytes."""
        return self._host.number("workspace_size", self._handle, _pack(tensors))

    def on_shape_change(self, tensors: PluginTensors) -> None:
        """Tell the plugin which shapes come next."""
        self._host.check("on_shape_change", self._handle, _pack(tensors))

    def prepare(self, tensors: PluginTensors, workspace_size: int) -> PreparedLaunch:
        """A launch with these tensors, to be given as many bytes of workspace at least; checks nothing."""
        handle = self._host.new_handle("prepare", self._handle, _pack(tensors), workspace_size)
        return PreparedLaunch(self._host, self, handle)
