"""Whether TensorRT can build or run an engine here, and if not, why not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.errors import EngineError
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.trt.api import TensorRT
from sparsespec.builder.trt.config import TensorRTBuild
from sparsespec.builder.trt.versions import (
    TensorRTUnavailableError,
    obstacle_for_fp8,
    obstacle_for_fp8_cache,
    obstacle_for_gpu,
    open_tensorrt,
)
from sparsespec.plugins.library import PluginsUnavailableError, plugin_library_path
from sparsespec.plugins.limits import LEAST_CAPABILITY, MAX_SLOTS, unserved


@dataclass(frozen=True)
class Gpu:
    """What an engine is built for."""

    name: str
    compute_capability: tuple[int, int]

    @property
    def capability(self) -> str:
        """As in "9.0"."""
        return ".".join(map(str, self.compute_capability))


@dataclass(frozen=True)
class Usable:
    """A TensorRT that can be used here, with the plugins and the GPU."""

    trt: TensorRT
    gpu: Gpu
    plugin_library: Path


class UnusableError(RuntimeError):
    """TensorRT cannot be used here, or not for this engine; the message says what was expected and found."""


def find_gpu(device: str) -> Gpu:
    """The CUDA device that torch calls so; "auto" is the first. UnusableError where there is none."""
    import torch

    if not torch.cuda.is_available() or device == "cpu":
        raise UnusableError(f"expected a CUDA device, found {'none' if device == 'auto' else f'device {device!r}'}")
    index = torch.device("cuda" if device == "auto" else device)
    return Gpu(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index))


def find_usable(model: ModelConfig, build: BuildConfig, device: str, plugin_library: Path | None) -> Usable:
    """TensorRT for engines of this model. UnusableError where that cannot be."""
    _require_served(model, build)
    try:
        trt = open_tensorrt()
        library = plugin_library or plugin_library_path()
    except (TensorRTUnavailableError, PluginsUnavailableError) as error:
        raise UnusableError(str(error)) from error
    if not os.path.isfile(library):  # not Path.is_file: it raises for a name that is too long
        raise UnusableError(f"plugin_library: expected a file, found none at {library!s:.200}")
    gpu = find_gpu(device)
    if gpu.compute_capability < LEAST_CAPABILITY:
        raise UnusableError(f"expected a GPU of compute capability 8.0 or more, found {gpu.name}, of {gpu.capability}")
    obstacle = obstacle_for_gpu(trt.__version__, gpu.compute_capability)
    if obstacle is None and model.quantization == "fp8":
        obstacle = obstacle_for_fp8(trt.__version__, gpu.compute_capability)
    if obstacle is None and build.kv_cache_dtype == "fp8":
        obstacle = obstacle_for_fp8_cache(gpu.compute_capability)
    if obstacle is not None:
        raise UnusableError(obstacle)
    return Usable(trt, gpu, library)


def check_built_for(built: TensorRTBuild, usable: Usable) -> None:
    """EngineError for engines of another GPU or TensorRT, naming both."""
    version = usable.trt.__version__
    if built.version != version:
        raise EngineError(f"built by TensorRT {built.version}, found TensorRT {version}; {_REMEDY}")
    if (built.gpu, built.compute_capability) != (usable.gpu.name, usable.gpu.capability):
        found = f"{usable.gpu.name} ({usable.gpu.capability})"
        raise EngineError(f"built for {built.gpu} ({built.compute_capability}), found {found}; {_REMEDY}")


_REMEDY = "build the engine here, or run it with --backend torch"


def _require_served(model: ModelConfig, build: BuildConfig) -> None:
    if build.element_size != 2:
        raise UnusableError(f"expected an engine of bfloat16 or float16, found {build.dtype}")
    reason = unserved(model.head_dim, model.num_heads // model.num_kv_heads, build.page_size)
    if reason is not None:
        raise UnusableError(f"plugins: {reason}")
    if build.max_batch_size > MAX_SLOTS:
        raise UnusableError(f"plugins: expected max_batch_size of at most {MAX_SLOTS}, found {build.max_batch_size}")
