"""TensorRT or torch: which of them runs an engine directory here, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.errors import EngineError, InputError
from sparsespec.builder.trt.availability import UnusableError, Usable, check_built_for, find_usable
from sparsespec.runtime.config import RuntimeConfig


@dataclass(frozen=True)
class BackendChoice:
    """tensorrt: what to run the engines with, or None for the torch executor."""

    tensorrt: Usable | None
    reason: str


def choose_backend(engine_dir: Path, config: EngineConfig, runtime: RuntimeConfig) -> BackendChoice:
    """What `runtime.backend` means here.

    Raises InputError where TensorRT is asked for and cannot be had, and EngineError where it is here but the engines
    were built for another GPU or by another TensorRT: auto does not hide that behind a slower executor.
    """
    if runtime.backend == "torch":
        return BackendChoice(None, "as asked for")
    if config.tensorrt is None:
        obstacle = f"{engine_dir} holds no TensorRT engines (build_engine.py --backend tensorrt)"
        return _torch_unless_asked(runtime, obstacle)
    try:
        library = None if runtime.plugin_library is None else Path(runtime.plugin_library)
        usable = find_usable(config.model, config.build, runtime.device, library)
    except UnusableError as error:
        return _torch_unless_asked(runtime, str(error))
    try:
        check_built_for(config.tensorrt, usable)
    except EngineError as error:
        raise EngineError(f"{engine_dir}: {error}") from error
    return BackendChoice(usable, f"TensorRT {usable.trt.__version__} on {usable.gpu.name}")


def _torch_unless_asked(runtime: RuntimeConfig, obstacle: str) -> BackendChoice:
    if runtime.backend == "tensorrt":
        raise InputError(f"backend tensorrt: {obstacle}")
    return BackendChoice(None, obstacle)
