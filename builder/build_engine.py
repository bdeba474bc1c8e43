"""Build an engine directory from a model checkpoint: `python builder/build_engine.py` or `sparsespec-build`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
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
from sparsespec.builder.fused_weights import fused_shapes
from sparsespec.builder.report import Metric, Report, Timing, check_report_path, this_machine
from sparsespec.builder.rope import longest_context
from sparsespec.builder.terminal import run_tool

if TYPE_CHECKING:
    from sparsespec.builder.checkpoint import Checkpoint
    from sparsespec.builder.engine_dir import EngineConfig


# What imports torch is imported where it is used: `--help` and a mistyped flag answer at once.


@dataclass(frozen=True)
class BuildJob:
    """What to build and where to put it."""

    checkpoint_dir: str = required("Hugging Face or TensorRT-LLM directory, hub id such as org/name, or .gguf file")
    output_dir: Path = required("engine directory to write")
    force: bool = option(False, "replace the engine that output_dir holds")
    json: Path | None = option(None, "write a machine-readable report to this file")


def build_engine(job: BuildJob, config: BuildConfig) -> Report:
    """Build one engine and describe what was built; shows progress on stderr.

    Raises CheckpointError, EngineError, or InputError for a config that the model cannot serve.
    """
    from sparsespec.builder.checkpoint import open_checkpoint

    start = perf_counter()
    with Console(stderr=True).status(Text(f"opening {job.checkpoint_dir}")):
        checkpoint = open_checkpoint(job.checkpoint_dir)
    opened = perf_counter()
    engine = _engine_config(checkpoint, config)
    _write(job, engine, checkpoint)
    timings = (Timing("open_checkpoint", opened - start), Timing("write_engine", perf_counter() - opened))
    return Report(
        tool="build_engine",
        version=version("sparsespec"),
        machine=this_machine("cpu"),
        config={"job": dataclasses.asdict(job), **dataclasses.asdict(engine)},
        timings=timings,
        metrics=_size_metrics(engine),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 or an exit code of `run_tool`."""
    parser = argparse.ArgumentParser(prog="build_engine", description=__doc__, allow_abbrev=False)
    add_flags(parser, BuildJob)
    add_flags(parser, BuildConfig)
    flags = parser.parse_args(argv)
    return run_tool(lambda: _run(from_flags(BuildJob, flags), from_flags(BuildConfig, flags)))


def _run(job: BuildJob, config: BuildConfig) -> int:
    if job.json is not None:
        _check_json(job.json, job.output_dir)
    report = build_engine(job, config)
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


def _write(job: BuildJob, engine: EngineConfig, checkpoint: Checkpoint) -> None:
    from sparsespec.builder.engine_dir import TORCH_DTYPES, write_engine
    from sparsespec.builder.fuse import fused_weights

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        weights = progress.track(
            fused_weights(checkpoint, TORCH_DTYPES[engine.build.dtype]),
            total=len(fused_shapes(engine.model)),
            description="packing weights",
        )
        write_engine(job.output_dir, engine, weights, checkpoint.save_tokenizer, job.force)


def _size_metrics(engine: EngineConfig) -> tuple[Metric, ...]:
    parameters = sum(math.prod(shape) for shape in fused_shapes(engine.model).values())
    return (
        Metric("parameters", parameters, "count"),
        Metric("weight_bytes", parameters * engine.build.element_size, "bytes"),
    )


def _summary(job: BuildJob, report: Report) -> str:
    parameters, size = (metric.value for metric in report.metrics)
    seconds = sum(timing.seconds for timing in report.timings)
    return f"{job.output_dir}: {parameters / 1e6:.1f}M parameters, {size / 1e6:.1f} MB, built in {seconds:.1f} s"


if __name__ == "__main__":
    raise SystemExit(main())
