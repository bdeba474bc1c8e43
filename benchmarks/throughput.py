"""How many tokens a second, plain and speculative, end to end; what it found is in docs/performance.md.

    python benchmarks/throughput.py --experiment forced --json forced.json
    python benchmarks/throughput.py --experiment shapes --engine_dir build/smollm2_bf16 --json shapes.json

Every experiment runs plain decoding too, by the same runtime: the drafter none, kernels of one row, and batch and
graphs of its own. A window is a number of whole cycles in which every request decodes; time is wall clock between two
points at which the GPU has nothing left to do, and the host's work is in it. A speed-up is a ratio of tokens a second
in one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from sources import sources_commit, sources_version
from sparsespec.builder.config_io import add_flags, from_flags, option, required
from sparsespec.builder.errors import InputError
from sparsespec.builder.report import check_report_path, this_machine
from sparsespec.builder.terminal import run_tool
from throughput_study.cases import Measured
from throughput_study.experiments import EXPERIMENTS
from throughput_study.settings import Choice, Result
from throughput_study.stored import SCHEMA


@dataclass(frozen=True)
class ThroughputConfig:
    """What is measured, and where it is written."""

    experiment: str = required(f"one of {', '.join(EXPERIMENTS)}")
    json: Path = required("report to write")
    engine_dir: Path | None = option(None, "engine directory of build_engine.py in bfloat16; forced needs none")
    batch: int | None = option(None, "requests that decode together; the experiment's own when not given")
    context: int | None = option(None, "their mean tokens in a window, prompt included, or so")

    def __post_init__(self) -> None:
        if self.experiment not in EXPERIMENTS:
            raise InputError(f"experiment must be one of {', '.join(EXPERIMENTS)}, found {self.experiment!r}")


def run(config: ThroughputConfig) -> int:
    """Measure, print and write."""
    check_report_path(config.json)
    results: list[Result] = []
    for result in EXPERIMENTS[config.experiment](Choice(config.engine_dir, config.batch, config.context)):
        results.append(result)
        print(_line(result, results[0]), flush=True)
        _write(config, results)  # what is measured is kept, whatever becomes of the rest
    return 0


def _line(result: Result, first: Result) -> str:
    """Ratios are to the first of a run, which is plain decoding."""
    ratio = ""
    if isinstance(result, Measured) and isinstance(first, Measured):
        ratio = f", {result.speedup_over(first):.2f}x"
    return f"{result.label:24} {result.summary()}{ratio}"


def _write(config: ThroughputConfig, results: list[Result]) -> None:
    document = {
        "schema": SCHEMA,
        "experiment": config.experiment,
        "command": shlex.join(["python", "benchmarks/throughput.py", *sys.argv[1:]]),
        "version": sources_version(),
        "commit": sources_commit(),
        "machine": dataclasses.asdict(this_machine("cuda")),
        "results": [{"kind": type(each).__name__, **dataclasses.asdict(each)} for each in results],
    }
    config.json.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, ThroughputConfig)
    return run_tool(lambda: run(from_flags(ThroughputConfig, parser.parse_args())))


if __name__ == "__main__":
    raise SystemExit(main())
