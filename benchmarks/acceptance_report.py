"""Tables and pictures of what acceptance.py measured.

python benchmarks/acceptance_report.py branches.json loops.json --output docs/acceptance_tables.md --plots docs
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from acceptance_study.observations import Cell, Observation, read_observations
from acceptance_study.rules import PAPER
from acceptance_study.tables import study_tables
from sparsespec.builder.config_io import add_flags, from_flags, option
from sparsespec.builder.errors import InputError
from sparsespec.builder.terminal import run_tool


@dataclass(frozen=True)
class ReportConfig:
    """What to write."""

    output: Path | None = option(None, "Markdown file to write the tables to, beside printing them")
    plots: Path | None = option(None, "directory for acceptance_branches.png and acceptance_rules.png")
    candidates: tuple[str, ...] = option((), "rules to confirm on the half of the texts kept for that")
    baselines: tuple[str, ...] = option((PAPER,), "rules that the candidates are compared with")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 or an exit code of `run_tool`."""
    parser = argparse.ArgumentParser(
        prog="acceptance_report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of acceptance.py", metavar="RESULTS.json")
    add_flags(parser, ReportConfig)
    flags = parser.parse_args(argv)
    return run_tool(lambda: _run(flags.results, from_flags(ReportConfig, flags)))


def _run(results: Sequence[Path], config: ReportConfig) -> int:
    setups, observations = read_merged(results)
    tables = study_tables(observations, config.candidates, config.baselines)
    text = "\n\n".join(["## Acceptance", *(table.markdown() for table in tables), _setup_text(setups)]) + "\n"
    print(text, end="")
    if config.output:
        config.output.write_text(text, encoding="utf-8")
    if config.plots:
        _plot(observations, config.plots, config.candidates)
    return 0


def read_merged(paths: Sequence[Path]) -> tuple[dict[str, dict[str, Any]], list[Observation]]:
    """Setups by file name, and all observations. Raises InputError for a cell that two files have."""
    setups: dict[str, dict[str, Any]] = {}
    owners: dict[Cell, Path] = {}
    merged: list[Observation] = []
    for path in paths:
        setups[path.name], observations = _read(path)
        for cell in dict.fromkeys(seen.cell for seen in observations):
            if cell in owners:
                raise InputError(f"{path}: expected cells that no other file has, found {cell} of {owners[cell]}")
            owners[cell] = path
        merged += observations
    return setups, merged


def _read(path: Path) -> tuple[dict[str, Any], list[Observation]]:
    try:
        return read_observations(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected results of acceptance.py, found {error!r:.200}") from error


def _plot(observations: Sequence[Observation], directory: Path, candidates: Sequence[str]) -> None:
    if find_spec("matplotlib") is None:
        raise InputError("plots: expected matplotlib, found none; pip install 'sparsespec[benchmark]'")
    from acceptance_study.plots import plot_branches, plot_rules

    directory.mkdir(parents=True, exist_ok=True)
    if any(seen.cell.study == "branches" for seen in observations):
        plot_branches(observations, directory / "acceptance_branches.png", candidates)
    plot_rules(observations, directory / "acceptance_rules.png")


def _setup_text(setups: dict[str, dict[str, Any]]) -> str:
    files = [f"{name}\n{json.dumps(setup)}" for name, setup in setups.items()]
    return "\n".join(["<details><summary>What was run</summary>", "", "```", *files, "```", "", "</details>"])


if __name__ == "__main__":
    raise SystemExit(main())
