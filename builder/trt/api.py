"""TensorRT's API as far as this project uses it, and all that its versions do differently.

The protocols name the real classes and methods. mypy holds our code to them; `tests/builder/trt/test_api.py` holds them
to the bindings of TensorRT 10.13 and 11.4. TensorRT is always handed over as a value, a `TensorRT`, never imported
elsewhere: it is an optional dependency, and tests hand over TensorRT for RTX or a fake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

Shape = Sequence[int]


class Named(Protocol):
    """A member of one of TensorRT's enumerations."""

    @property
    def name(self) -> str:
        """As its enumeration spells it."""


class DataType(Named, Protocol):
    """Type of a tensor's elements."""

    FLOAT: DataType
    HALF: DataType
    BF16: DataType
    FP8: DataType
    INT32: DataType
    INT64: DataType


class MatrixOperation(Named, Protocol):
    """Of an operand of a matrix product."""

    NONE: MatrixOperation
    TRANSPOSE: MatrixOperation


class ElementWiseOperation(Named, Protocol):
    """Of two tensors."""

    SUM: ElementWiseOperation
    PROD: ElementWiseOperation
    DIV: ElementWiseOperation
    FLOOR_DIV: ElementWiseOperation


class UnaryOperation(Named, Protocol):
    """Of one tensor."""

    SQRT: UnaryOperation


class ReduceOperation(Named, Protocol):
    """Over axes."""

    AVG: ReduceOperation


class ActivationType(Named, Protocol):
    """Activations."""

    SIGMOID: ActivationType


class BuilderFlag(Named, Protocol):
    """Builder switches."""

    TF32: BuilderFlag


class PreviewFeature(Named, Protocol):
    """Features to be asked for."""

    ALIASED_PLUGIN_IO_10_03: PreviewFeature


class ProfilingVerbosity(Named, Protocol):
    """How much an engine keeps about its layers."""

    LAYER_NAMES_ONLY: ProfilingVerbosity
    NONE: ProfilingVerbosity
    DETAILED: ProfilingVerbosity


class LayerInformationFormat(Named, Protocol):
    """Of the engine inspector."""

    JSON: LayerInformationFormat


class ExecutionContextAllocationStrategy(Named, Protocol):
    """Who owns activation memory."""

    USER_MANAGED: ExecutionContextAllocationStrategy


class TensorIOMode(Named, Protocol):
    """Direction of an engine's tensor."""

    INPUT: TensorIOMode
    OUTPUT: TensorIOMode


class TensorLocation(Named, Protocol):
    """Where an engine wants a tensor."""

    DEVICE: TensorLocation


class PluginFieldType(Named, Protocol):
    """Type of a plugin's field."""

    INT32: PluginFieldType
    FLOAT32: PluginFieldType
    CHAR: PluginFieldType


class TensorRTPhase(Named, Protocol):
    """What a plugin is created for."""

    BUILD: TensorRTPhase


class NetworkDefinitionCreationFlag(Named, Protocol):
    """Kinds of network."""

    STRONGLY_TYPED: NetworkDefinitionCreationFlag

    def __int__(self) -> int: ...


class ITensor(Protocol):
    """A tensor of a network."""

    name: str

    @property
    def dtype(self) -> DataType: ...

    @property
    def shape(self) -> Shape: ...

    def set_dimension_name(self, index: int, name: str) -> None: ...


class ILayer(Protocol):
    """A layer of a network."""

    name: str

    def get_output(self, index: int) -> ITensor: ...

    def set_input(self, index: int, tensor: ITensor) -> None: ...


class IShuffleLayer(ILayer, Protocol):
    """Reshapes."""

    reshape_dims: Shape


class IPluginV3(Protocol):
    """A plugin object; only TensorRT talks to it."""


class INetworkDefinition(Protocol):
    """A network being written down."""

    name: str

    def add_input(self, name: str, dtype: DataType, shape: Shape) -> ITensor: ...

    def mark_output(self, tensor: ITensor) -> None: ...

    def add_constant(self, shape: Shape, weights: NDArray[Any]) -> ILayer: ...

    def add_gather(self, input: ITensor, indices: ITensor, axis: int) -> ILayer: ...

    def add_cast(self, input: ITensor, to_type: DataType) -> ILayer: ...

    def add_shape(self, input: ITensor) -> ILayer: ...

    def add_slice(self, input: ITensor, start: Shape, shape: Shape, stride: Shape) -> ILayer: ...

    def add_shuffle(self, input: ITensor) -> IShuffleLayer: ...

    def add_elementwise(self, input1: ITensor, input2: ITensor, op: ElementWiseOperation) -> ILayer: ...

    def add_unary(self, input: ITensor, op: UnaryOperation) -> ILayer: ...

    def add_reduce(self, input: ITensor, op: ReduceOperation, axes: int, keep_dims: bool) -> ILayer: ...

    def add_activation(self, input: ITensor, type: ActivationType) -> ILayer: ...

    def add_matrix_multiply(
        self, input0: ITensor, op0: MatrixOperation, input1: ITensor, op1: MatrixOperation
    ) -> ILayer: ...

    def add_quantize(self, input: ITensor, scale: ITensor, output_type: DataType) -> ILayer: ...

    def add_dequantize(self, input: ITensor, scale: ITensor, output_type: DataType) -> ILayer: ...

    def add_plugin_v3(
        self, inputs: Sequence[ITensor], shape_inputs: Sequence[ITensor], plugin: IPluginV3
    ) -> ILayer: ...


class IOptimizationProfile(Protocol):
    """The shapes that an engine is built for."""

    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None: ...


class ITimingCache(Protocol):
    """How fast tactics were."""

    def serialize(self) -> IHostMemory: ...


class IHostMemory(Protocol):
    """Bytes that TensorRT owns; a buffer."""

    def __buffer__(self, flags: int, /) -> memoryview: ...


class IBuilderConfig(Protocol):
    """How to build."""

    builder_optimization_level: int
    max_aux_streams: int
    profiling_verbosity: ProfilingVerbosity
    progress_monitor: object

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...

    def clear_flag(self, flag: BuilderFlag) -> None: ...

    def set_preview_feature(self, feature: PreviewFeature, enable: bool) -> None: ...

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None: ...

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...

    def get_timing_cache(self) -> ITimingCache | None: ...


class Builder(Protocol):
    """Makes engines."""

    error_recorder: object

    def create_network(self, flags: int) -> INetworkDefinition: ...

    def create_builder_config(self) -> IBuilderConfig: ...

    def create_optimization_profile(self) -> IOptimizationProfile: ...

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None: ...


class IPluginCreatorV3One(Protocol):
    """Makes plugins of one kind."""

    def create_plugin(self, name: str, field_collection: object, phase: TensorRTPhase) -> IPluginV3 | None: ...


class IPluginRegistry(Protocol):
    """All plugins that TensorRT knows."""

    def get_creator(self, type: str, version: str, plugin_namespace: str) -> IPluginCreatorV3One | None: ...

    def load_library(self, plugin_path: str) -> object | None: ...


class EngineInspector(Protocol):
    """Tells what an engine is made of."""

    def get_engine_information(self, format: LayerInformationFormat) -> str: ...


class IExecutionContext(Protocol):
    """An engine about to run: profile, shapes and addresses."""

    def set_device_memory(self, memory: int, size: int) -> None: ...

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...

    def set_input_shape(self, name: str, shape: Shape) -> bool: ...

    def set_tensor_address(self, name: str, memory: int) -> bool: ...

    def infer_shapes(self) -> Sequence[str]: ...

    def execute_async_v3(self, stream_handle: int) -> bool: ...


class ICudaEngine(Protocol):
    """An engine in memory."""

    @property
    def num_io_tensors(self) -> int: ...

    @property
    def num_optimization_profiles(self) -> int: ...

    def get_tensor_name(self, index: int) -> str: ...

    def get_tensor_mode(self, name: str) -> TensorIOMode: ...

    def get_tensor_dtype(self, name: str) -> DataType: ...

    def get_tensor_location(self, name: str) -> TensorLocation: ...

    def get_tensor_shape(self, name: str) -> Shape: ...

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Shape]: ...

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int: ...

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> IExecutionContext | None: ...

    def create_engine_inspector(self) -> EngineInspector: ...


class Runtime(Protocol):
    """Brings engines into memory."""

    error_recorder: object

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...


# In the protocol below the name means the enumeration.
_FieldType = PluginFieldType


class TensorRT(Protocol):
    """The module `tensorrt`."""

    __version__: str
    DataType: type[DataType]
    MatrixOperation: type[MatrixOperation]
    ElementWiseOperation: type[ElementWiseOperation]
    UnaryOperation: type[UnaryOperation]
    ReduceOperation: type[ReduceOperation]
    ActivationType: type[ActivationType]
    BuilderFlag: type[BuilderFlag]
    PreviewFeature: type[PreviewFeature]
    ProfilingVerbosity: type[ProfilingVerbosity]
    LayerInformationFormat: type[LayerInformationFormat]
    ExecutionContextAllocationStrategy: type[ExecutionContextAllocationStrategy]
    TensorIOMode: type[TensorIOMode]
    TensorLocation: type[TensorLocation]
    PluginFieldType: type[PluginFieldType]
    TensorRTPhase: type[TensorRTPhase]
    NetworkDefinitionCreationFlag: type[NetworkDefinitionCreationFlag]
    # Interfaces that are implemented here; see `implement`.
    ILogger: type
    IProgressMonitor: type
    IErrorRecorder: type

    def __hash__(self) -> int: ...

    def Builder(self, logger: object) -> Builder: ...

    def Runtime(self, logger: object) -> Runtime: ...

    def PluginField(self, name: str, data: NDArray[Any], type: _FieldType) -> object: ...

    def PluginFieldCollection(self, fields: Sequence[object]) -> object: ...

    def get_plugin_registry(self) -> IPluginRegistry: ...
