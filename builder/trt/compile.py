"""From a network to a serialised engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from sparsespec.builder.errors import EngineError, InputError
from sparsespec.builder.input_files import read_regular
from sparsespec.builder.trt.api import Builder, IBuilderConfig, TensorRT
from sparsespec.builder.trt.attention_layers import AttentionLayers
from sparsespec.builder.trt.messages import ErrorLog, python_logger
from sparsespec.builder.trt.network import EngineSpec, write_network, write_profile
from sparsespec.builder.trt.progress import BuildProgress
from sparsespec.builder.trt.versions import implement, strongly_typed_network

Configure = Callable[[IBuilderConfig], None]


@dataclass(frozen=True)
class Toolchain:
    """Who builds: TensorRT, and what its networks get for the project's own ops."""

    trt: TensorRT
    attention: AttentionLayers
    # What else a TensorRT wants to be told, such as for which GPUs, where it is TensorRT for RTX.
    configure: Configure | None = None


class EngineBuilder:
    """Builds engines with one TensorRT builder and one timing cache."""

    def __init__(self, tools: Toolchain, progress: Progress) -> None:
        self._tools = tools
        self._progress = progress
        self._errors = ErrorLog()
        self._recorder = implement(tools.trt.IErrorRecorder, self._errors)
        self._builder: Builder = tools.trt.Builder(python_logger(tools.trt))
        self._builder.error_recorder = self._recorder

    def build(self, spec: EngineSpec) -> bytes:
        """The engine, serialised. EngineError with TensorRT's words where it builds none."""
        self._errors.clear()
        network = strongly_typed_network(self._tools.trt, self._builder)
        # Whatever begins with _ is looked at by TensorRT until it has built.
        _ops = write_network(self._tools.trt, network, self._tools.attention, spec)
        config = self._configured(spec)
        _cache = self._read_timing_cache(config, spec.config.timing_cache)
        monitor = BuildProgress(self._progress, f"{spec.kind}.engine")
        config.progress_monitor = _forwarding = implement(self._tools.trt.IProgressMonitor, monitor)
        plan = self._builder.build_serialized_network(network, config)
        if monitor.was_interrupted:
            raise KeyboardInterrupt
        if plan is None:
            raise EngineError(f"{spec.kind}.engine: TensorRT built nothing: {self._errors.take()}")
        if spec.config.timing_cache is not None:
            _write_timing_cache(config, spec.config.timing_cache)
        return bytes(plan)

    def _configured(self, spec: EngineSpec) -> IBuilderConfig:
        trt, config, io = self._tools.trt, self._builder.create_builder_config(), spec.io
        for sizes in io.profiles:
            profile = self._builder.create_optimization_profile()
            write_profile(profile, io, sizes)
            config.add_optimization_profile(profile)
        # Tensors that PillarAttention updates are bound to memory that outlives a step: TensorRT must not copy them.
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, spec.config.aliased_io)
        config.max_aux_streams = 0  # layers follow one another, and a graph is captured from one stream
        config.clear_flag(trt.BuilderFlag.TF32)  # types are the engine's, and float32 means all of its bits
        config.builder_optimization_level = spec.config.builder_opt
        config.profiling_verbosity = getattr(trt.ProfilingVerbosity, spec.config.profiling_verbosity.upper())
        if self._tools.configure is not None:
            self._tools.configure(config)
        return config

    def _read_timing_cache(self, config: IBuilderConfig, path: Path | None) -> Any:
        if path is None:
            return None
        if not os.access(path.parent, os.W_OK):  # asked before the work is done
            raise InputError(f"timing_cache: {path}: expected a file in a directory that can be written")
        try:
            known = read_regular(path) if path.exists() else b""
        except OSError as error:
            raise InputError(f"timing_cache: {path}: cannot be read: {error}") from error
        cache = config.create_timing_cache(known)
        if cache is None or not config.set_timing_cache(cache, False):
            raise InputError(f"timing_cache: {path}: not one of this TensorRT and GPU: {self._errors.take()}")
        return cache


@dataclass(frozen=True)
class EngineFacts:
    """What TensorRT says of an engine."""

    layers: str  # the inspector's JSON
    activation_bytes: int  # of one context, for the largest profile


def inspect_engine(trt: TensorRT, plan: bytes, num_profiles: int) -> EngineFacts:
    """Ask TensorRT about an engine. EngineError where it cannot be brought into memory."""
    errors = ErrorLog()
    runtime = trt.Runtime(python_logger(trt))
    runtime.error_recorder = implement(trt.IErrorRecorder, errors)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"TensorRT does not take the engine that it has just built: {errors.take()}")
    sizes = [engine.get_device_memory_size_for_profile_v2(profile) for profile in range(num_profiles)]
    layers = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return EngineFacts(layers, max(sizes))


def _write_timing_cache(config: IBuilderConfig, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is None:
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(bytes(cache.serialize()))
        partial.replace(path)
    except OSError as error:
        raise InputError(f"timing_cache: {path}: cannot be written: {error}") from error
