"""Builds engines with TensorRT for RTX's real builder, on the CPU; prints what it was given and what came out, as JSON.

A process of its own: what goes wrong in there ends in a crash, not in an exception. Plugins are replaced by native
layers, since that TensorRT has no add_plugin_v3; everything else is the code that builds for TensorRT.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import Progress

from native_layers import NativeLayers
from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.config_io import from_mapping
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.trt.compile import EngineBuilder, Toolchain
from sparsespec.builder.trt.config import TensorRTConfig
from sparsespec.builder.trt.engine_io import EngineKind
from sparsespec.builder.trt.network import EngineSpec

# A GPU that TensorRT for RTX builds for: it refuses the H200's 9.0.
COMPUTE_CAPABILITY = "SM120"


@dataclass(frozen=True)
class BuiltTensor:
    """As the real network has it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class BuiltEngine:
    """What TensorRT's network and profiles say, and what became of them."""

    inputs: tuple[BuiltTensor, ...]
    outputs: tuple[BuiltTensor, ...]
    profiles: tuple[dict[str, list[list[int]]], ...]  # input -> least, usual and largest shape
    num_bytes: int
    seconds: float
    phases: tuple[str, ...]  # that TensorRT told its progress monitor of


def build_on_rtx(model: ModelConfig, build: BuildConfig, kind: EngineKind) -> BuiltEngine:
    """Build in another process. Raises AssertionError with what it said where it failed."""
    asked = json.dumps({"model": asdict(model), "build": asdict(build), "kind": kind})
    command = [sys.executable, str(Path(__file__)), asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode}\n{done.stderr}")
    return _parse(json.loads(done.stdout.splitlines()[-1]))


def _parse(answer: dict[str, Any]) -> BuiltEngine:
    tensors = {
        side: tuple(BuiltTensor(each["name"], each["dtype"], tuple(each["shape"])) for each in answer[side])
        for side in ("inputs", "outputs")
    }
    return BuiltEngine(
        inputs=tensors["inputs"],
        outputs=tensors["outputs"],
        profiles=tuple(answer["profiles"]),
        num_bytes=answer["num_bytes"],
        seconds=answer["seconds"],
        phases=tuple(answer["phases"]),
    )


class _Watched:
    """A TensorRT that remembers its last network and the profiles of its last config."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.network: Any = None
        self.profiles: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trt, name)

    def Builder(self, logger: object) -> Any:
        watched, builder = self, self.trt.Builder(logger)

        class Builder:
            """TensorRT's, looked over the shoulder."""

            def __setattr__(self, name: str, value: Any) -> None:
                setattr(builder, name, value)

            def __getattr__(self, name: str) -> Any:
                return getattr(builder, name)

            def create_network(self, flags: int) -> Any:
                watched.network = builder.create_network(flags)
                return watched.network

            def create_optimization_profile(self) -> Any:
                watched.profiles.append(builder.create_optimization_profile())
                return watched.profiles[-1]

        return Builder()


def _build(asked: dict[str, Any]) -> BuiltEngine:
    rtx: Any = import_module("tensorrt_rtx_bindings")
    watched = _Watched(rtx)

    def for_one_gpu(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(rtx.ComputeCapability, COMPUTE_CAPABILITY), 0)

    model = from_mapping(ModelConfig, asked["model"], "model")
    build = from_mapping(BuildConfig, asked["build"], "build")
    spec = EngineSpec(model, build, TensorRTConfig(), asked["kind"])
    with Progress(console=Console(stderr=True)) as progress:
        builder = EngineBuilder(Toolchain(watched, NativeLayers(rtx), for_one_gpu), progress)  # type: ignore[arg-type]
        titles: list[str] = []
        add_task = progress.add_task
        progress.add_task = lambda title, **options: (titles.append(title), add_task(title, **options))[1]  # type: ignore[method-assign,assignment]
        start = perf_counter()
        plan = builder.build(spec)
    network = watched.network
    return BuiltEngine(
        inputs=_tensors([network.get_input(index) for index in range(network.num_inputs)]),
        outputs=_tensors([network.get_output(index) for index in range(network.num_outputs)]),
        profiles=tuple(_ranges(spec, profile) for profile in watched.profiles),
        num_bytes=len(plan),
        seconds=perf_counter() - start,
        phases=tuple(titles),
    )


def _tensors(tensors: Sequence[Any]) -> tuple[BuiltTensor, ...]:
    return tuple(BuiltTensor(each.name, each.dtype.name, tuple(each.shape)) for each in tensors)


def _ranges(spec: EngineSpec, profile: Any) -> dict[str, list[list[int]]]:
    return {
        each.name: [list(shape) for shape in profile.get_shape(each.name)] for each in spec.io.inputs if each.is_dynamic
    }


if __name__ == "__main__":
    print(json.dumps(asdict(_build(json.loads(sys.argv[1])))))
