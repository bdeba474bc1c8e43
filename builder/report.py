"""The machine-readable report that every tool writes with `--json`: schema "sparsespec.report/1".

{
  "schema": "sparsespec.report/1",
  "tool": name of the tool,  "version": of sparsespec,
  "machine": {"platform", "python", "torch": versions, "device": name of the chip, "cpu_count": logical CPUs},
  "config": the flags and sections that the tool ran with, by name,
  "timings": [{"name", "seconds": wall clock}, ...],
  "metrics": [{"name", "value": finite number, "unit"}, ...]  over the whole run,
  "requests": [{"prompt_tokens", "output_tokens", "text", "finish_reason", "metrics": [...]}, ...]  in request order
}
Readers should ignore keys they do not know; a change of meaning changes the schema's number.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsespec.builder.errors import InputError

SCHEMA = "sparsespec.report/1"


@dataclass(frozen=True)
class Machine:
    """Where the tool ran; `device` is the name of the chip that computed."""

    platform: str
    python: str
    torch: str
    device: str
    cpu_count: int


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of one named part of a run."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Metric:
    """One finite number with its unit, for example `Metric("weights", 538090240, "bytes")`."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class RequestReport:
    """What became of one request; token counts exclude what was never sent to the model."""

    prompt_tokens: int
    output_tokens: int
    text: str
    finish_reason: str
    metrics: tuple[Metric, ...] = ()


@dataclass(frozen=True)
class Report:
    """One run of one tool; `config` maps section names to JSON-like values."""

    tool: str
    version: str
    machine: Machine
    config: Mapping[str, object]
    timings: tuple[Timing, ...] = ()
    metrics: tuple[Metric, ...] = ()
    requests: tuple[RequestReport, ...] = ()

    def to_json(self) -> str:
        """Indented ASCII JSON; paths become strings. Raises ValueError for a number that is not finite."""
        document = {"schema": SCHEMA, **dataclasses.asdict(self)}
        return json.dumps(document, indent=2, allow_nan=False, default=str)

    def write(self, path: Path) -> None:
        """Raises InputError when `path` cannot be written."""
        try:
            path.write_text(self.to_json() + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot write the report: {error}") from error


def check_report_path(path: Path) -> None:
    """Raises InputError when `Report.write` would; for asking before the work is done."""
    try:
        exists, in_directory = path.exists(), path.parent.is_dir()
        possible = not path.is_dir() and in_directory and os.access(path if exists else path.parent, os.W_OK)
    except OSError as error:
        raise InputError(f"{path}: cannot write the report: {error}") from error
    if not possible:
        raise InputError(f"{path}: cannot write the report: expected a file in a directory that can be written")


def this_machine(device: str) -> Machine:
    """Describe this machine; `device` is a torch device such as `cpu` or `cuda:0`."""
    import torch  # slow to import, and only needed once a tool has done its work

    is_cuda = torch.device(device).type == "cuda"
    return Machine(
        platform=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        device=torch.cuda.get_device_name(device) if is_cuda else f"CPU {torch.backends.cpu.get_cpu_capability()}",
        cpu_count=os.cpu_count() or 1,
    )
