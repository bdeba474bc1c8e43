"""A whole fake module `tensorrt`: builds by recording networks, runs engines by tests/fake_tensorrt.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fake_tensorrt import FakeTensorRT
from recorded_network import Network, Recording, RecordingTensorRT

Flag = Enum("Flag", ("TF32",))
Preview = Enum("Preview", ("ALIASED_PLUGIN_IO_10_03",))
Verbosity = Enum("Verbosity", ("LAYER_NAMES_ONLY", "NONE", "DETAILED"))
LayerFormat = Enum("LayerFormat", ("JSON",))
STRONGLY_TYPED = 1 << 1


class CreationFlag(Enum):
    """NetworkDefinitionCreationFlag."""

    STRONGLY_TYPED = 1

    def __int__(self) -> int:
        return self.value


@dataclass
class Built:
    """What a builder was given for one engine."""

    recording: Recording
    config: FakeConfig
    profiles: list[FakeProfile]


@dataclass
class BuilderFaults:
    """What goes wrong while building."""

    nothing_built: bool = False
    interrupted: bool = False
    foreign_timing_cache: bool = False


class BuildingTensorRT(FakeTensorRT):
    """FakeTensorRT that builds as well."""

    IProgressMonitor = object
    NetworkDefinitionCreationFlag = CreationFlag
    BuilderFlag = Flag
    PreviewFeature = Preview
    ProfilingVerbosity = Verbosity
    LayerInformationFormat = LayerFormat

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.recorder: Any = RecordingTensorRT()
        self.built: list[Built] = []
        self.builder_faults = BuilderFaults()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["recorder"], name)

    def Builder(self, logger: object) -> FakeBuilder:
        return FakeBuilder(self)

    def get_creator(self, type: str, version: str, plugin_namespace: str) -> Any:
        if not self.loaded_libraries:
            return None
        made = self.recorder.get_plugin_registry().get_creator(type, version, plugin_namespace)
        return object() if type == "PillarSelect" else made


@dataclass
class FakeProfile:
    """IOptimizationProfile."""

    shapes: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        self.shapes[input] = (min, opt, max)


@dataclass
class FakeTimingCache:
    """ITimingCache."""

    known: bytes

    def serialize(self) -> bytes:
        return self.known + b"timed "


@dataclass
class FakeConfig:
    """IBuilderConfig."""

    trt: BuildingTensorRT
    builder_optimization_level: int = -1
    max_aux_streams: int | None = None
    profiling_verbosity: Any = None
    progress_monitor: Any = None
    cleared: list[Any] = field(default_factory=list)
    previewed: list[Any] = field(default_factory=list)
    profiles: list[FakeProfile] = field(default_factory=list)
    cache: FakeTimingCache | None = None

    def add_optimization_profile(self, profile: FakeProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def clear_flag(self, flag: Any) -> None:
        self.cleared.append(flag)

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        if enable:
            self.previewed.append(feature)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> FakeTimingCache:
        return FakeTimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: FakeTimingCache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return not self.trt.builder_faults.foreign_timing_cache

    def get_timing_cache(self) -> FakeTimingCache | None:
        return self.cache


@dataclass
class FakeBuilder:
    """Builder: an engine is the name of its kind."""

    trt: BuildingTensorRT
    error_recorder: Any = None

    def create_network(self, flags: int) -> Network:
        if flags != STRONGLY_TYPED:
            raise AssertionError(f"flags {flags}: types must not be the builder's to choose")
        return Network()

    def create_builder_config(self) -> FakeConfig:
        return FakeConfig(self.trt)

    def create_optimization_profile(self) -> FakeProfile:
        return FakeProfile()

    def build_serialized_network(self, network: Network, config: FakeConfig) -> bytes | None:
        monitor, faults = config.progress_monitor, self.trt.builder_faults
        monitor.phase_start("Building Engine", None, 2)
        monitor.phase_start("Tactic Selection", "Building Engine", 3)
        goes_on = monitor.step_complete("Tactic Selection", 0)
        monitor.phase_finish("Tactic Selection")
        goes_on = monitor.step_complete("Building Engine", 0) and goes_on
        monitor.phase_finish("Building Engine")
        if faults.nothing_built or not goes_on:
            self.error_recorder.report_error("INTERNAL_ERROR", "could not find any implementation for node gate_up")
            return None
        self.trt.built.append(Built(network.recording(), config, config.profiles))
        return network.name.removeprefix("sparsespec ").encode()
