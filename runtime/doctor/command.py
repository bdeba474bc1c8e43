"""`sparsespec doctor`: says what is here and what each missing piece costs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sparsespec.builder.config_io import add_flags, from_flags, option
from sparsespec.builder.report import check_report_path
from sparsespec.builder.terminal import run_tool
from sparsespec.runtime.doctor.examine import examine
from sparsespec.runtime.doctor.report import render, write_json

_FILE_WIDTH = 96  # columns where the output does not go to a terminal


@dataclass(frozen=True)
class DoctorConfig:
    """What becomes of the findings, beside being printed."""

    json: Path | None = option(None, "write them to this file too, as JSON")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 whatever is missing, or an exit code of `run_tool`."""
    parser = argparse.ArgumentParser(prog="sparsespec doctor", description=__doc__, allow_abbrev=False)
    add_flags(parser, DoctorConfig)
    flags = parser.parse_args(argv)
    return run_tool(lambda: doctor(from_flags(DoctorConfig, flags)))


def doctor(config: DoctorConfig) -> int:
    """Look for everything, print it, and write it where it is wanted. Raises InputError for an unusable path."""
    if config.json is not None:
        check_report_path(config.json)
    with Console(stderr=True).status(Text("looking around")):
        findings = examine()
    width = None if sys.stdout is not None and sys.stdout.isatty() else _FILE_WIDTH
    console = Console(width=width, highlight=False)
    console.print(f"sparsespec {version('sparsespec')}", style="bold", markup=False)
    console.print(render(findings))
    if config.json is not None:
        write_json(config.json, version("sparsespec"), findings)
    return 0
