"""The engines of an engine directory: both built, looked into, and written beside the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from rich.progress import Progress

from sparsespec.builder.engine_dir import ENGINE_FILES, LAYER_FILES, EngineConfig
from sparsespec.builder.memory_plan import activation_bytes, workspace_bytes
from sparsespec.builder.trt.attention_layers import PluginLayers, load_plugin_library
from sparsespec.builder.trt.availability import Usable
from sparsespec.builder.trt.compile import EngineBuilder, EngineFacts, Toolchain, inspect_engine
from sparsespec.builder.trt.config import TensorRTBuild, TensorRTConfig
from sparsespec.builder.trt.engine_io import EngineKind, max_pool_pages
from sparsespec.builder.trt.network import EngineSpec


@dataclass(frozen=True)
class CompiledEngine:
    """One engine, and what TensorRT's inspector says of it."""

    kind: EngineKind
    plan: bytes
    facts: EngineFacts
    seconds: float  # building took


@dataclass(frozen=True)
class CompiledEngines:
    """Both, for one GPU and one TensorRT."""

    built: TensorRTBuild
    engines: tuple[CompiledEngine, ...]

    def write(self, directory: Path) -> None:
        """Into an engine directory. Raises OSError."""
        for each in self.engines:
            (directory / ENGINE_FILES[each.kind]).write_bytes(each.plan)
            (directory / LAYER_FILES[each.kind]).write_text(each.facts.layers + "\n", encoding="utf-8")


def compile_engines(
    usable: Usable, engine: EngineConfig, config: TensorRTConfig, progress: Progress
) -> CompiledEngines:
    """Build draft.engine and verify.engine on usable.gpu. EngineError with TensorRT's words where it cannot.

    Weights are inputs of the engines: none is needed here.
    """
    trt = usable.trt
    builder = EngineBuilder(Toolchain(trt, PluginLayers(trt, config.aliased_io)), progress)
    load_plugin_library(trt, usable.plugin_library)  # TensorRT's logger is there by now

    def compiled(kind: EngineKind) -> CompiledEngine:
        start = perf_counter()
        spec = EngineSpec(engine.model, engine.build, config, kind)
        plan = builder.build(spec)
        seconds = perf_counter() - start
        return CompiledEngine(kind, plan, inspect_engine(trt, plan, len(spec.io.profiles)), seconds)

    return CompiledEngines(tensorrt_build(usable, config), (compiled("draft"), compiled("verify")))


def copied_pool_bytes(engine: EngineConfig, compiled: CompiledEngine) -> int | None:
    """One layer's KV pool, where the engine asks for so much more memory than it should need; None where it does not.

    TensorRT then copies the pool in every step, although it is updated in place.
    """
    model, build = engine.model, engine.build
    pages = 2 * model.num_kv_heads * build.page_size * model.head_dim * max_pool_pages(model, build)
    pool = pages * build.kv_element_size
    expected = 2 * activation_bytes(model, build) + workspace_bytes(model)
    return pool if compiled.facts.activation_bytes >= pool + expected else None


def tensorrt_build(usable: Usable, config: TensorRTConfig) -> TensorRTBuild:
    """What config.json says of engines built here."""
    return TensorRTBuild(
        version=usable.trt.__version__,
        gpu=usable.gpu.name,
        compute_capability=usable.gpu.capability,
        score_planes=config.score_planes,
        score_normalizer=config.score_normalizer,
        aliased_io=config.aliased_io,
        opt_batch_size=config.opt_batch_size,
        builder_opt=config.builder_opt,
        profiling_verbosity=config.profiling_verbosity,
    )
