"""The two engines of an engine directory, brought into memory and held against what the session will bind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sparsespec.builder.engine_dir import ENGINE_FILES, EngineConfig
from sparsespec.builder.errors import EngineError
from sparsespec.builder.input_files import check_readable
from sparsespec.builder.trt.api import ICudaEngine, Runtime, TensorRT
from sparsespec.builder.trt.attention_layers import load_plugin_library
from sparsespec.builder.trt.engine_io import EngineIo, EngineKind, EngineTensor, Profile, engine_io
from sparsespec.builder.trt.messages import ErrorLog, python_logger
from sparsespec.builder.trt.network import data_type
from sparsespec.builder.trt.versions import implement
from sparsespec.runtime.trt.device_stream import current_device

# Engines hold no weights: one of 30 layers is some 10 MB.
_MOST_ENGINE_BYTES = 2**32


@dataclass(frozen=True)
class LoadedPart:
    """One engine, and what it takes and gives."""

    io: EngineIo
    engine: ICudaEngine


@dataclass(frozen=True)
class TensorRTEngines:
    """Both engines; several sessions may share them."""

    trt: TensorRT
    runtime: Runtime  # owns what the engines need
    draft: LoadedPart
    verify: LoadedPart
    errors: ErrorLog
    device: torch.device


@dataclass(frozen=True)
class EngineSource:
    """Where engines come from, and where they go."""

    directory: Path
    config: EngineConfig
    plugin_library: Path
    device: torch.device


def load_engines(trt: TensorRT, source: EngineSource) -> TensorRTEngines:
    """Deserialise and check both engines. EngineError says which file, what was expected and what was found."""
    with current_device(source.device):
        return _load_engines(trt, source)


def _load_engines(trt: TensorRT, source: EngineSource) -> TensorRTEngines:
    errors = ErrorLog()
    runtime = trt.Runtime(python_logger(trt))
    runtime.error_recorder = implement(trt.IErrorRecorder, errors)
    load_plugin_library(trt, source.plugin_library)

    def load(kind: EngineKind) -> LoadedPart:
        path = source.directory / ENGINE_FILES[kind]
        engine = runtime.deserialize_cuda_engine(_read(path))
        if engine is None:
            raise EngineError(f"{path}: TensorRT {trt.__version__} does not take this engine: {errors.take()}")
        part = LoadedPart(_expected_io(source.config, kind), engine)
        _check(trt, path, part)
        return part

    return TensorRTEngines(trt, runtime, load("draft"), load("verify"), errors, source.device)


def _expected_io(config: EngineConfig, kind: EngineKind) -> EngineIo:
    built = config.tensorrt
    assert built is not None
    return engine_io(config.model, config.build, built.config, kind)


def _read(path: Path) -> bytes:
    try:
        check_readable(path)
        size = path.stat().st_size
        if size > _MOST_ENGINE_BYTES:
            raise EngineError(f"{path}: expected at most {_MOST_ENGINE_BYTES} bytes, found {size}")
        return path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error}") from error


def _check(trt: TensorRT, path: Path, part: LoadedPart) -> None:
    """Names, directions, types, shapes and profiles."""
    io, engine = part.io, part.engine
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    expected = {tensor.name: tensor for tensor in (*io.inputs, *io.outputs)}
    for name in names:
        _expect(name in expected, path, name, "no such tensor", "one")
    for name, tensor in expected.items():
        _expect(name in names, path, name, "a tensor", "none")
        mode = trt.TensorIOMode.INPUT if tensor in io.inputs else trt.TensorIOMode.OUTPUT
        found_mode = engine.get_tensor_mode(name)
        _expect(found_mode == mode, path, name, mode.name, found_mode.name)
        dtype, found_dtype = data_type(trt, tensor.dtype), engine.get_tensor_dtype(name)
        _expect(found_dtype == dtype, path, name, dtype.name, found_dtype.name)
        found = list(engine.get_tensor_shape(name))
        _expect(_is_shape(tensor, io, found), path, name, f"shape {list(tensor.declared)}", f"{found}")
        location = engine.get_tensor_location(name)
        _expect(location == trt.TensorLocation.DEVICE, path, name, "memory of the device", location.name)
    count = engine.num_optimization_profiles
    _expect(count == len(io.profiles), path, "profiles", str(len(io.profiles)), str(count))
    for index, profile in enumerate(io.profiles):
        for tensor in io.inputs:
            if tensor.is_dynamic:
                _check_profile(path, engine, tensor, profile, index)


def _is_shape(tensor: EngineTensor, io: EngineIo, found: list[int]) -> bool:
    """As declared. TensorRT may have found out that an axis has one size in all profiles."""
    ends = [tensor.at(sizes) for profile in io.profiles for sizes in (profile.least, profile.most)]
    only = [sizes[0] if min(sizes) == max(sizes) else None for sizes in zip(*ends, strict=True)]
    declared = list(tensor.declared)
    return len(found) == len(declared) and all(
        size in (expected, single) for size, expected, single in zip(found, declared, only, strict=True)
    )


def _check_profile(path: Path, engine: ICudaEngine, tensor: EngineTensor, profile: Profile, index: int) -> None:
    expected = [list(tensor.at(sizes)) for sizes in (profile.least, profile.usual, profile.most)]
    found = [list(shape) for shape in engine.get_tensor_profile_shape(tensor.name, index)]
    _expect(found == expected, path, f"{tensor.name} in profile {index}", f"{expected}", f"{found}")


def _expect(condition: bool, path: Path, name: str, expected: str, found: str) -> None:
    if not condition:
        raise EngineError(f"{path}: {name}: expected {expected}, found {found}; build the engine again")
