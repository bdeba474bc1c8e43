"""TensorRT without TensorRT: engines whose contexts run the torch lowering on the addresses that they are bound to.

Its engines know a model and run it; everything else they learn through TensorRT's API alone: names, shapes, addresses,
stream. On a GPU they enqueue on the stream they are given, so that CUDA graphs capture them.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from recorded_types import DataType
from sparsespec.builder.decoder import Decoder, DecoderInputs
from sparsespec.builder.engine_dir import ENGINE_FILES, EngineConfig
from sparsespec.builder.trt.config import TensorRTBuild, TensorRTConfig
from sparsespec.builder.trt.engine_io import UPDATED, EngineKind, EngineTensor
from sparsespec.builder.trt.network import EngineSpec
from sparsespec.plugins.pillar_attention.inputs import LayerInputs, StepInputs
from sparsespec.runtime.device.attention_ops import AttentionOps, ReferenceAttention
from sparsespec.runtime.device.torch_ops import TorchOps
from sparsespec.runtime.trt.engines import EngineSource, TensorRTEngines, load_engines

VERSION = "11.4.0.106"
BUILT = TensorRTBuild(VERSION, "NVIDIA H200", "9.0", "diagonal", "draft", True, None, 3, "layer_names_only")

Strategy = Enum("Strategy", ("USER_MANAGED",))
Location = Enum("Location", ("DEVICE", "HOST"))
TensorIOMode = Enum("TensorIOMode", ("INPUT", "OUTPUT"))
_TYPES = {
    "float32": (DataType.FLOAT, torch.float32),
    "float16": (DataType.HALF, torch.float16),
    "bfloat16": (DataType.BF16, torch.bfloat16),
    "float8_e4m3fn": (DataType.FP8, torch.float8_e4m3fn),
    "int32": (DataType.INT32, torch.int32),
    "int64": (DataType.INT64, torch.int64),
}


@dataclass
class Faults:
    """What goes wrong."""

    missing_tensor: str | None = None  # an engine without this tensor
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # that an engine claims
    types: dict[str, str] = field(default_factory=dict)
    refused_shape: str | None = None  # set_input_shape says no
    refused_address: str | None = None
    no_context: bool = False
    corrupt: str | None = None  # kind of an engine that is not deserialised
    failing_step: int | None = None  # this enqueue fails, from 0
    most_rows: int | None = None  # profiles end there
    activation_bytes: int = 0  # that an engine wants in addition
    host_tensor: str | None = None  # that an engine wants in host memory


@dataclass
class FakeTensorRT:
    """The module, for engines of one EngineConfig. Remembers which engines ran, and how many rows."""

    config: EngineConfig
    device: str = "cpu"
    attention: AttentionOps = field(default_factory=ReferenceAttention)
    faults: Faults = field(default_factory=Faults)
    runs: list[tuple[EngineKind, int, int]] = field(default_factory=list)  # profile and rows of every enqueue
    contexts: list[FakeContext] = field(default_factory=list)
    current_devices: list[int] = field(default_factory=list)  # CUDA's, where TensorRT takes it for the engine's
    loaded_libraries: list[str] = field(default_factory=list)
    __version__: str = VERSION
    DataType: Any = DataType
    TensorIOMode: Any = TensorIOMode
    TensorLocation: Any = Location
    ExecutionContextAllocationStrategy: Any = Strategy
    ILogger: type = object
    IErrorRecorder: type = object

    def __hash__(self) -> int:
        return id(self)

    def Runtime(self, logger: object) -> FakeRuntime:
        return FakeRuntime(self)

    def see_device(self) -> None:
        """TensorRT takes CUDA's current device, without being told."""
        if self.device != "cpu":
            self.current_devices.append(torch.cuda.current_device())

    def get_plugin_registry(self) -> FakeTensorRT:
        return self

    def get_creator(self, type: str, version: str, plugin_namespace: str) -> object | None:
        return object() if self.loaded_libraries else None

    def load_library(self, plugin_path: str) -> object:
        self.loaded_libraries.append(plugin_path)
        return object()


@dataclass
class FakeRuntime:
    """Takes a plan that is the name of an engine's kind."""

    trt: FakeTensorRT
    error_recorder: Any = None

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
        self.trt.see_device()
        kind: EngineKind = "draft" if serialized_engine == b"draft" else "verify"
        if self.trt.faults.corrupt == kind:
            self.error_recorder.report_error("INTERNAL_ERROR", "the magic tag\n does not match")
            return None
        return FakeEngine(self, kind)


class FakeEngine:
    """One of the two."""

    def __init__(self, runtime: FakeRuntime, kind: EngineKind) -> None:
        self.runtime = runtime
        self.trt = runtime.trt
        self.kind = kind
        config = self.trt.config
        scoring = TensorRTConfig() if config.tensorrt is None else config.tensorrt.config
        self.spec = EngineSpec(config.model, config.build, scoring, kind)
        io, faults = self.spec.io, self.trt.faults
        self.inputs = {each.name: each for each in io.inputs if each.name != faults.missing_tensor}
        self.outputs = {each.name: each for each in io.outputs if each.name != faults.missing_tensor}
        self.tensors = {**self.inputs, **self.outputs}
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(io.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _TYPES[self.trt.faults.types.get(name, self.tensors[name].dtype)][0]

    def get_tensor_location(self, name: str) -> Location:
        return Location.HOST if name == self.trt.faults.host_tensor else Location.DEVICE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.trt.faults.shapes.get(name, self.tensors[name].declared)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        profile = self.spec.io.profiles[profile_index]
        shapes = [self.inputs[name].at(sizes) for sizes in (profile.least, profile.usual, profile.most)]
        most = self.trt.faults.most_rows
        if most is not None and name == "token_ids":
            return [(min(shape[0], most),) for shape in shapes]
        return shapes

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        needed = 4096 * (profile_index + 1) * (1 if self.kind == "draft" else 3)
        return needed + self.trt.faults.activation_bytes

    def create_engine_inspector(self) -> FakeInspector:
        return FakeInspector(self.kind)

    def create_execution_context(self, strategy: object) -> FakeContext | None:
        if self.trt.faults.no_context:
            self.runtime.error_recorder.report_error("MEM_ALLOC_FAILED", "no memory for a context")
            return None
        self.trt.see_device()
        context = FakeContext(self)
        self.trt.contexts.append(context)
        return context


@dataclass(frozen=True)
class FakeInspector:
    """EngineInspector."""

    kind: EngineKind

    def get_engine_information(self, format: object) -> str:
        return json.dumps({"Layers": [f"PillarAttention of {self.kind}"]})


class FakeContext:
    """Runs the torch lowering over raw addresses."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.trt = engine.trt
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.device_memory: tuple[int, int] | None = None
        self.profile: int | None = None

    def set_device_memory(self, memory: int, size: int) -> None:
        self.device_memory = (memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """As TensorRT: only inputs, only within the profile."""
        tensor, profile = self.engine.inputs[name], self.engine.spec.io.profiles[self.profile or 0]
        least, most = tensor.at(profile.least), tensor.at(profile.most)
        fits = all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
        if not fits or name == self.trt.faults.refused_shape:
            return self._refuse(f"{name}: {list(shape)} is not in {list(least)} to {list(most)}")
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine.tensors or name == self.trt.faults.refused_address:
            return self._refuse(f"{name}: no such tensor")
        self.addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        """Inputs that are dynamic and have no shape."""
        return [name for name, each in self.engine.inputs.items() if each.is_dynamic and name not in self.shapes]

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Refuses what TensorRT would: no memory, an unbound tensor, an input without a shape, a copy of a pool."""
        self.trt.see_device()
        if len(self.trt.runs) == self.trt.faults.failing_step:
            return self._refuse("launch failure")
        needed = max(
            self.engine.get_device_memory_size_for_profile_v2(index)
            for index in range(self.engine.num_optimization_profiles)
        )
        if self.device_memory is None or self.device_memory[1] < needed:
            return self._refuse(f"expected {needed} bytes of device memory, found {self.device_memory}")
        missing = [name for name in self.engine.tensors if not self.addresses.get(name)]
        missing += self.infer_shapes()
        moved = [
            name
            for name in self.engine.outputs
            if name.endswith(UPDATED) and self.addresses.get(name) != self.addresses.get(name.removesuffix(UPDATED))
        ]
        if missing or moved:
            return self._refuse(f"unbound {missing}, not in place {moved}")
        if stream_handle == 0:
            self._run()
        else:
            with torch.cuda.stream(torch.cuda.ExternalStream(stream_handle, self.trt.device)):
                self._run()
        return True

    @torch.inference_mode()
    def _run(self) -> None:
        engine, tensors = self.engine, {name: self._tensor(each) for name, each in self.engine.inputs.items()}
        num_rows = len(tensors["token_ids"])
        self.trt.runs.append((engine.kind, self.profile or 0, num_rows))
        weights = {each.name: tensors[each.name] for each in engine.spec.io.weights}
        decoder = Decoder[Tensor](TorchOps(self.trt.attention), engine.spec.model, engine.spec.attention, weights)
        logits = decoder(_decoder_inputs(tensors, engine.spec.model.num_layers))
        output = engine.spec.io.logits
        self._view(output, tuple(logits.shape)).copy_(logits)

    def _tensor(self, tensor: EngineTensor) -> Tensor:
        shape = self.shapes.get(tensor.name)
        return self._view(tensor, tensor.declared if shape is None else shape)

    def _view(self, tensor: EngineTensor, shape: tuple[int, ...]) -> Tensor:
        return tensor_at(self.addresses[tensor.name], shape, _TYPES[tensor.dtype][1], self.trt.device)

    def _refuse(self, why: str) -> bool:
        self.engine.runtime.error_recorder.report_error("INVALID_VALUE", why)
        return False


def tensor_at(address: int, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """The memory at an address as a tensor."""
    count = int(torch.Size(shape).numel())
    if count == 0:
        return torch.empty(shape, dtype=dtype, device=device)
    size = count * dtype.itemsize
    if device == "cpu":
        raw = torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=torch.uint8)
    else:
        interface = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}
        raw = torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device=device)
    return raw.view(dtype).reshape(shape)


def _decoder_inputs(tensors: Mapping[str, Tensor], num_layers: int) -> DecoderInputs[Tensor]:
    def layer(index: int) -> LayerInputs[Tensor]:
        own: Callable[[str], Any] = lambda name: tensors.get(f"layers.{index}.{name}")  # noqa: E731
        return LayerInputs(*(own(name) for name in ("kv_pool", "draft_lse", "pillars", "scores")))

    step: dict[str, Any] = {name: tensors.get(name) for name in StepInputs.__dataclass_fields__}
    return DecoderInputs(
        token_ids=tensors["token_ids"],
        logit_rows=tensors.get("logit_rows"),
        step=StepInputs(**step),
        layers=tuple(layer(index) for index in range(num_layers)),
    )


def fake_engines(directory: Path, trt: FakeTensorRT) -> TensorRTEngines:
    """Load the two engines of trt.config, whose files are written into `directory`."""
    for kind, name in ENGINE_FILES.items():
        (directory / name).write_bytes(kind.encode())
    source = EngineSource(directory, trt.config, directory / "libsparsespec_plugins.so", torch.device(trt.device))
    return load_engines(trt, source)  # type: ignore[arg-type]
