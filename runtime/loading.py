"""From an engine directory to what the runtime runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsespec.builder.engine_dir import EngineConfig, load_weights, read_engine_config
from sparsespec.builder.errors import InputError
from sparsespec.runtime.text import TextCodec

_MOST_DIGITS = 9  # of a device's number


@dataclass(frozen=True)
class LoadedEngine:
    """An engine in memory; several LLMs may share it."""

    config: EngineConfig
    weights: dict[str, Tensor]
    codec: TextCodec


def load_engine(engine_dir: Path, device: str) -> LoadedEngine:
    """Read an engine directory onto a device (auto, cpu, cuda or cuda:N). Raises EngineError or InputError."""
    target = resolve_device(device)
    config = read_engine_config(engine_dir)
    return LoadedEngine(config, load_weights(engine_dir, config, target), TextCodec.load(engine_dir))


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
