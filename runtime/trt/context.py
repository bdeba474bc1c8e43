"""An execution context: one profile of one engine, bound to memory by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsespec.builder.build_config import ADDRESS_ALIGNMENT
from sparsespec.builder.errors import BackendError, EngineError
from sparsespec.builder.trt.api import IExecutionContext
from sparsespec.builder.trt.engine_io import UPDATED, ElementType, EngineTensor, Sizes
from sparsespec.runtime.trt.device_stream import DeviceStream
from sparsespec.runtime.trt.engines import LoadedPart, TensorRTEngines

_TORCH_TYPES: dict[ElementType, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "int32": torch.int32,
    "int64": torch.int64,
}
# Sizes that differ from step to step.
_STEP_SIZES = ("num_rows", "num_logits")


@dataclass(frozen=True)
class Bindings:
    """Memory that every context of a session is bound to: it neither moves nor goes away."""

    tensors: Mapping[str, Tensor]  # every input and `logits`, by name; those of a step may be larger than the step
    activations: Tensor  # [bytes] uint8, for one context at a time
    sizes: Sizes  # of everything but the step


def check_bindings(part: LoadedPart, bindings: Bindings) -> None:
    """EngineError for a tensor that is missing, or of another type or shape than the engine expects."""
    device = bindings.activations.device
    for tensor in (*part.io.inputs, part.io.logits):
        bound = bindings.tensors.get(tensor.name)
        where = f"{part.io.kind}.engine: {tensor.name}: expected"
        if bound is None:
            raise EngineError(f"{where} a tensor to bind, found none")
        if bound.device != device:
            raise EngineError(f"{where} memory of {device}, found {bound.device}")
        if bound.dtype != _TORCH_TYPES[tensor.dtype]:
            raise EngineError(f"{where} {tensor.dtype}, found {bound.dtype}")
        shape, fits = tensor.at(bindings.sizes), tuple(bound.shape) == tensor.at(bindings.sizes)
        if not fits and not _is_of_a_step(tensor):
            raise EngineError(f"{where} shape {list(shape)}, found {list(bound.shape)}")
        if bound.is_cuda and bound.data_ptr() % ADDRESS_ALIGNMENT:
            raise EngineError(f"{where} an address of whole {ADDRESS_ALIGNMENT} bytes, found {bound.data_ptr():#x}")
        if not bound.is_contiguous():
            raise EngineError(f"{where} a contiguous tensor, found strides {list(bound.stride())}")


class BoundContext:
    """Enqueues steps of one profile. What its graphs captured stays valid as long as it gets no other shapes."""

    def __init__(
        self, engines: TensorRTEngines, part: LoadedPart, profile: int, bindings: Bindings, stream: DeviceStream
    ) -> None:
        """Raises BackendError where TensorRT refuses a binding."""
        self._engines = engines
        self._part = part
        self._stream = stream
        self._context = self._make(profile, bindings.activations)
        self._stepwise = tuple(tensor for tensor in part.io.inputs if _is_of_a_step(tensor))
        for tensor in part.io.inputs:
            self._bind(tensor.name, bindings.tensors[tensor.name])
            if tensor.is_dynamic:
                self._set_shape(tensor, bindings.sizes)
        for tensor in part.io.outputs:
            self._bind(tensor.name, bindings.tensors[tensor.name.removesuffix(UPDATED)])
        self._infer_shapes()
        self._sizes = bindings.sizes

    def enqueue(self, num_rows: int, num_logits: int) -> None:
        """Run a step of so many rows on the stream. BackendError where it could not be enqueued."""
        self._expect(self.try_enqueue(num_rows, num_logits), f"a step of {num_rows} rows")

    def try_enqueue(self, num_rows: int, num_logits: int) -> bool:
        """The same; False where it could not be enqueued, as in a capture, which no exception may leave."""
        sizes = replace(self._sizes, num_rows=num_rows, num_logits=num_logits)
        if sizes != self._sizes:
            for tensor in self._stepwise:
                self._set_shape(tensor, sizes)
            self._sizes = sizes
        return self._context.execute_async_v3(self._stream.handle)

    def refused(self, what: str) -> BackendError:
        """With TensorRT's words."""
        errors = self._engines.errors.take()
        return BackendError(f"{self._part.io.kind}.engine: TensorRT refused {what}: {errors}")

    def _infer_shapes(self) -> None:
        try:
            unknown = ", ".join(self._context.infer_shapes())
        except RuntimeError as error:  # the bindings' word for a failure
            raise self.refused(f"the inputs' shapes ({error})") from error
        self._expect(not unknown, f"to run without {unknown}")

    def _make(self, profile: int, activations: Tensor) -> IExecutionContext:
        self._engines.errors.clear()
        strategy = self._engines.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._part.engine.create_execution_context(strategy)
        if context is None:
            raise self.refused("an execution context")
        context.set_device_memory(activations.data_ptr(), activations.numel())
        self._expect(context.set_optimization_profile_async(profile, self._stream.handle), f"profile {profile}")
        return context

    def _bind(self, name: str, tensor: Tensor) -> None:
        self._expect(self._context.set_tensor_address(name, tensor.data_ptr()), f"memory for {name}")

    def _set_shape(self, tensor: EngineTensor, sizes: Sizes) -> None:
        shape = tensor.at(sizes)
        self._expect(self._context.set_input_shape(tensor.name, shape), f"shape {list(shape)} of {tensor.name}")

    def _expect(self, done: bool, what: str) -> None:
        if not done:
            raise self.refused(what)


def allocate_activations(engines: TensorRTEngines, device: torch.device) -> Tensor:
    """One block for all contexts of both engines, which never run at the same time. [bytes] uint8."""
    parts = (engines.draft, engines.verify)
    sizes = [
        part.engine.get_device_memory_size_for_profile_v2(profile)
        for part in parts
        for profile in range(len(part.io.profiles))
    ]
    return torch.empty(max(1, *sizes), dtype=torch.uint8, device=device)


def _is_of_a_step(tensor: EngineTensor) -> bool:
    return any(not isinstance(extent, int) and extent.size in _STEP_SIZES for extent in tensor.shape)
