"""Build an engine directory from a model checkpoint: `python builder/build_engine.py` or `sparsespec-build`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.config_io import add_flags, from_flags, option, required
from sparsespec.builder.errors import InputError
from sparsespec.builder.fused_weights import WeightSpec, fused_specs, is_scale
from sparsespec.builder.memory_plan import DeviceMemory, full_use, memory_plan
from sparsespec.builder.report import Metric, Report, Timing, check_report_path, this_machine
from sparsespec.builder.rope import longest_context
from sparsespec.builder.terminal import run_tool
from sparsespec.builder.trt.config import BackendName, TensorRTConfig

if TYPE_CHECKING:
    from sparsespec.builder.checkpoint import Checkpoint
    from sparsespec.builder.engine_dir import EngineConfig
    from sparsespec.builder.trt.availability import Usable
    from sparsespec.builder.trt.engine_files import CompiledEngines


FILE_WIDTH = 96  # columns of what does not go to a terminal
_MOST_GB = 1_000_000

# What imports torch is imported where it is used: `--help` and a mistyped flag answer at once.


@dataclass(frozen=True)
class BuildJob:
    """What to build and where to put it."""

    checkpoint_dir: str = required("Hugging Face or TensorRT-LLM directory, hub id such as org/name, or .gguf file")
    output_dir: Path = required("engine directory to write")
    backend: BackendName = option(
        "auto", "tensorrt: TensorRT's engines too; torch: none; auto: where TensorRT is here and serves the engine"
    )
    force: bool = option(False, "replace the engine that output_dir holds")
    gpu_memory_gb: float | None = option(None, "plan memory for a GPU of so many GB; of the one here when not given")
    json: Path | None = option(None, "write a machine-readable report to this file")

    def __post_init__(self) -> None:
        if self.gpu_memory_gb is not None and not 0 < self.gpu_memory_gb <= _MOST_GB:
            raise InputError(f"gpu_memory_gb must be in 0..{_MOST_GB}, found {self.gpu_memory_gb}")


def build_engine(job: BuildJob, config: BuildConfig, tensorrt: TensorRTConfig = TensorRTConfig()) -> Report:
    """Build one engine and describe what was built; shows progress and the memory that it will take on stderr.

    Raises CheckpointError, EngineError, or InputError for a config that the model, or TensorRT, cannot serve.
    """
    from sparsespec.builder.checkpoint import open_checkpoint

    start = perf_counter()
    with Console(stderr=True).status(Text(f"opening {job.checkpoint_dir}")):
        checkpoint = open_checkpoint(job.checkpoint_dir)
    opened = perf_counter()
    engine = _engine_config(checkpoint, config)
    _tell_of_kv_scales(engine, checkpoint)
    usable = _usable_tensorrt(job, engine, tensorrt)
    _show_memory(job, engine, tensorrt, usable is not None)
    compiled = None if usable is None else _compile(usable, engine, tensorrt)
    _warn_of_copies(engine, compiled)
    writing = perf_counter()
    engine = dataclasses.replace(engine, tensorrt=None if compiled is None else compiled.built)
    _write(job, engine, checkpoint, compiled)
    timings = (Timing("open_checkpoint", opened - start), Timing("write_engine", perf_counter() - writing))
    return Report(
        tool="build_engine",
        version=version("sparsespec"),
        machine=this_machine("cpu"),
        config={"job": dataclasses.asdict(job), **dataclasses.asdict(engine)},
        timings=timings + _compile_timings(compiled),
        metrics=_size_metrics(engine) + _engine_metrics(compiled),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 or an exit code of `run_tool`."""
    parser = argparse.ArgumentParser(prog="build_engine", description=__doc__, allow_abbrev=False)
    for section in (BuildJob, BuildConfig, TensorRTConfig):
        add_flags(parser, section)
    flags = parser.parse_args(argv)
    return run_tool(
        lambda: _run(from_flags(BuildJob, flags), from_flags(BuildConfig, flags), from_flags(TensorRTConfig, flags))
    )


def _run(job: BuildJob, config: BuildConfig, tensorrt: TensorRTConfig) -> int:
    if job.json is not None:
        _check_json(job.json, job.output_dir)
    report = build_engine(job, config, tensorrt)
    if job.json is not None:
        report.write(job.json)
    print(_summary(job, report))
    return 0


def _check_json(path: Path, output_dir: Path) -> None:
    # Not resolve(): Python before 3.13 raises a RuntimeError there for a loop of links.
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(output_dir)):
        raise InputError(f"json: {path}: expected a place outside output_dir {output_dir}, which holds an engine only")
    check_report_path(path)


def _engine_config(checkpoint: Checkpoint, config: BuildConfig) -> EngineConfig:
    from sparsespec.builder.engine_dir import EngineConfig

    model = checkpoint.model
    limit = longest_context(model.max_position_embeddings, model.rope_scaling)
    if config.max_seq_len > limit:
        raise InputError(
            f"max_seq_len must be at most {limit}, which is how far the model's positions reach, found "
            f"{config.max_seq_len}; build with --max_seq_len {limit} or less"
        )
    dtype = checkpoint.dtype if config.dtype == "auto" else config.dtype
    return EngineConfig(model, dataclasses.replace(config, dtype=dtype))


def _tell_of_kv_scales(engine: EngineConfig, checkpoint: Checkpoint) -> None:
    """Keys and values that go beyond what FP8 holds without a scale are cut off."""
    layers = range(engine.model.num_layers if engine.build.kv_cache_dtype == "fp8" else 0)
    missing = sum(checkpoint.kv_scale(layer) is None for layer in layers)
    if missing:
        print(
            f"kv_cache_dtype fp8: the checkpoint has no scales of the KV cache for {missing} of {len(layers)} layers; "
            "they are 1.0",
            file=sys.stderr,
        )


def _usable_tensorrt(job: BuildJob, engine: EngineConfig, config: TensorRTConfig) -> Usable | None:
    """What to build TensorRT's engines with; None for the torch executor alone, with the reason on stderr."""
    if job.backend == "torch":
        return None
    from sparsespec.builder.trt.availability import UnusableError, find_usable

    try:
        return find_usable(engine.model, engine.build, "auto", config.plugin_library)
    except UnusableError as error:
        if job.backend == "tensorrt":
            raise InputError(f"backend tensorrt: {error}") from error
        print(f"no TensorRT engines: {error}", file=sys.stderr)
        return None


def _show_memory(job: BuildJob, engine: EngineConfig, config: TensorRTConfig, is_tensorrt: bool) -> None:
    """Before anything is allocated or built."""
    from sparsespec.builder.memory_table import memory_table

    use = full_use(engine.build, config.score_planes, is_tensorrt)
    table = memory_table(memory_plan(engine.model, engine.build, use), _gpu_memory(job))
    Console(stderr=True, width=None if sys.stderr.isatty() else FILE_WIDTH, highlight=False).print(table)


def _gpu_memory(job: BuildJob) -> DeviceMemory | None:
    """As asked for, or of the current CUDA device; None where there is none."""
    if job.gpu_memory_gb is not None:
        return DeviceMemory("the GPU to come", int(job.gpu_memory_gb * 1e9))
    import torch

    if not torch.cuda.is_available():
        return None
    return DeviceMemory(torch.cuda.get_device_name(), torch.cuda.get_device_properties().total_memory)


def _compile(usable: Usable, engine: EngineConfig, config: TensorRTConfig) -> CompiledEngines:
    from sparsespec.builder.trt.engine_files import compile_engines

    with _progress() as progress:
        return compile_engines(usable, engine, config, progress)


def _warn_of_copies(engine: EngineConfig, compiled: CompiledEngines | None) -> None:
    """A copy of the KV pool in every step undoes what the engines are for."""
    from sparsespec.builder.trt.engine_files import copied_pool_bytes

    for each in () if compiled is None else compiled.engines:
        pool = copied_pool_bytes(engine, each)
        if pool is not None:
            print(
                f"warning: {each.kind}.engine asks for {each.facts.activation_bytes / 1e9:.1f} GB beside its inputs: "
                f"TensorRT seems to copy a KV pool of {pool / 1e9:.1f} GB in every step; build with --no-aliased_io",
                file=sys.stderr,
            )


def _write(job: BuildJob, engine: EngineConfig, checkpoint: Checkpoint, compiled: CompiledEngines | None) -> None:
    from sparsespec.builder.engine_dir import TORCH_DTYPES, write_engine
    from sparsespec.builder.fuse import fused_weights

    def write_others(directory: Path) -> None:
        checkpoint.save_tokenizer(directory)
        if compiled is not None:
            compiled.write(directory)

    with _progress() as progress:
        weights = progress.track(
            fused_weights(checkpoint, TORCH_DTYPES[engine.build.dtype], engine.build.kv_cache_dtype),
            total=len(_weight_specs(engine)),
            description="packing weights",
        )
        write_engine(job.output_dir, engine, weights, write_others, job.force)


def _weight_specs(engine: EngineConfig) -> dict[str, WeightSpec]:
    return fused_specs(engine.model, engine.build.dtype, engine.build.kv_cache_dtype)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _compile_timings(compiled: CompiledEngines | None) -> tuple[Timing, ...]:
    engines = () if compiled is None else compiled.engines
    return tuple(Timing(f"build_{each.kind}_engine", each.seconds) for each in engines)


def _engine_metrics(compiled: CompiledEngines | None) -> tuple[Metric, ...]:
    engines = () if compiled is None else compiled.engines
    return tuple(
        metric
        for each in engines
        for metric in (
            Metric(f"{each.kind}_engine_bytes", len(each.plan), "bytes"),
            Metric(f"{each.kind}_activation_bytes", each.facts.activation_bytes, "bytes"),
        )
    )


def _size_metrics(engine: EngineConfig) -> tuple[Metric, ...]:
    specs = _weight_specs(engine)
    return (
        Metric("parameters", sum(spec.num_elements for name, spec in specs.items() if not is_scale(name)), "count"),
        Metric("weight_bytes", sum(spec.num_bytes for spec in specs.values()), "bytes"),
    )


def _summary(job: BuildJob, report: Report) -> str:
    sizes = {metric.name: metric.value for metric in report.metrics}
    parts = [f"{sizes.pop('parameters') / 1e6:.1f}M parameters", f"{sizes.pop('weight_bytes') / 1e6:.1f} MB"]
    engines = {kind: sizes.get(f"{kind}_engine_bytes") for kind in ("draft", "verify")}
    parts += [f"{kind}.engine {size / 1e6:.1f} MB" for kind, size in engines.items() if size is not None]
    seconds = sum(timing.seconds for timing in report.timings)
    return f"{job.output_dir}: {', '.join(parts)}, built in {seconds:.1f} s"


if __name__ == "__main__":
    raise SystemExit(main())
