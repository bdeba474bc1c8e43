"""From an engine directory to what the runtime runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsespec.builder.engine_dir import EngineConfig, load_weights, read_engine_config
from sparsespec.builder.errors import InputError
from sparsespec.runtime.backend import choose_backend
from sparsespec.runtime.config import RuntimeConfig
from sparsespec.runtime.text import TextCodec
from sparsespec.runtime.trt.engines import EngineSource, TensorRTEngines, load_engines

_MOST_DIGITS = 9  # of a device's number


@dataclass(frozen=True)
class LoadedEngine:
    """An engine in memory; several LLMs may share it."""

    config: EngineConfig
    weights: dict[str, Tensor]
    codec: TextCodec
    engines: TensorRTEngines | None = None  # None for the torch executor
    backend_reason: str = "made in memory"  # why these engines, or none

    @property
    def backend(self) -> str:
        """Who runs the decoder: torch or tensorrt."""
        return "torch" if self.engines is None else "tensorrt"


def load_engine(engine_dir: Path, runtime: RuntimeConfig) -> LoadedEngine:
    """Read an engine directory onto runtime.device, for the backend that it names. EngineError or InputError."""
    target = resolve_device(runtime.device)
    config = read_engine_config(engine_dir)
    choice = choose_backend(engine_dir, config, runtime)
    usable = choice.tensorrt
    weights = load_weights(engine_dir, config, target)
    engines = None
    if usable is not None:
        source = EngineSource(engine_dir, config, usable.plugin_library, weights["embedding"].device)
        engines = load_engines(usable.trt, source)
    return LoadedEngine(config, weights, TextCodec.load(engine_dir), engines, choice.reason)


def resolve_device(device: str) -> str:
    """`auto` is cuda where there is one. Raises InputError for a device that torch cannot use here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index.isdecimal() or device == "cuda"):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, found {device!r}")
    if len(index) > _MOST_DIGITS or int(index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r}: torch finds {torch.cuda.device_count()} CUDA devices here")
    return device
