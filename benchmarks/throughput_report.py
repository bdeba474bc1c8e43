"""Tables and pictures of what throughput.py measured.

python benchmarks/throughput_report.py benchmarks/results/throughput_*.json --output docs/performance_tables.md \\
    --plots docs
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sparsespec.builder.config_io import add_flags, from_flags, option
from sparsespec.builder.errors import InputError
from sparsespec.builder.terminal import run_tool
from throughput_study.stored import StoredRun, read_run
from throughput_study.tables import TABLES


@dataclass(frozen=True)
class ReportConfig:
    """What to write."""

    output: Path | None = option(None, "Markdown file to write the tables to, beside printing them")
    plots: Path | None = option(None, "directory for performance_*.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 or an exit code of `run_tool`."""
    parser = argparse.ArgumentParser(
        prog="throughput_report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of throughput.py", metavar="RESULTS.json")
    add_flags(parser, ReportConfig)
    flags = parser.parse_args(argv)
    return run_tool(lambda: _run(flags.results, from_flags(ReportConfig, flags)))


def _run(results: Sequence[Path], config: ReportConfig) -> int:
    runs = {run.experiment: run for run in map(read_run, results)}
    text = report(runs)
    print(text, end="")
    if config.output:
        config.output.write_text(text, encoding="utf-8")
    if config.plots:
        _plot(runs, config.plots)
    return 0


def report(runs: Mapping[str, StoredRun]) -> str:
    """All tables, in the order of TABLES."""
    parts = [
        "# Throughput, as measured",
        "Written by `benchmarks/throughput_report.py`; what it means: [performance.md](performance.md).",
    ]
    for experiment, (title, tables) in TABLES.items():
        if experiment in runs:
            run = runs[experiment]
            where = f"on one {run.device}" + (f", commit {run.commit}" if run.commit else "")
            parts += [f"## {title}", f"`{run.command}` {where}.", tables(run)]
    return "\n\n".join(parts) + "\n"


def _plot(runs: Mapping[str, StoredRun], directory: Path) -> None:
    if find_spec("matplotlib") is None:
        raise InputError("plots: needs matplotlib (pip install 'sparsespec[benchmark]')")
    from throughput_study.plots import plot_all

    plot_all(runs, directory)


if __name__ == "__main__":
    raise SystemExit(main())
