"""The findings for people and for programs, and what follows from them.

What `--json` writes, schema "sparsespec.doctor/1":

{
  "schema": "sparsespec.doctor/1",
  "version": of sparsespec,
  "findings": [{"subject", "state": "found", "missing" or "unsuitable", "details": lines, "cost": "" for none}, ...],
  "backend": {"name": what --backend auto would take for a 16-bit engine: "tensorrt" or "torch", "reason"}
}
Readers should ignore keys they do not know; a change of meaning changes the schema's number.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sparsespec.builder.errors import InputError
from sparsespec.runtime.doctor.findings import Finding, State, Subject

SCHEMA = "sparsespec.doctor/1"
_STYLES: dict[State, str] = {"found": "green", "missing": "yellow", "unsuitable": "red"}
_FOR_PLUGINS: tuple[Subject, ...] = ("NVIDIA driver", "plugin library", "plugin host")


@dataclass(frozen=True)
class Backend:
    """What `--backend auto` would take, and why."""

    name: Literal["tensorrt", "torch"]
    reason: str


def likely_backend(findings: Sequence[Finding]) -> Backend:
    """For a 16-bit engine of a model that the kernels serve; `runtime/backend.py` chooses for a given one."""
    states = {finding.subject: finding.state for finding in findings}
    if states["PyTorch"] != "found":
        return Backend("torch", f"which stops: PyTorch is {states['PyTorch']}")
    if states["GPUs"] == "missing":
        return Backend("torch", "on the CPU with the reference ops: there is no GPU that PyTorch can use")
    if states["GPUs"] == "unsuitable":
        return Backend("torch", "which stops unless --attention reference is given: no GPU is served by the plugins")
    lacking = [subject for subject in _FOR_PLUGINS if states[subject] != "found"]
    if lacking:
        reasons = ", ".join(f"{subject} {states[subject]}" for subject in lacking)
        return Backend("torch", f"which stops unless --attention reference is given: {reasons}")
    if states["TensorRT"] != "found":
        return Backend("torch", f"on the GPU with the plugins: TensorRT is {states['TensorRT']}")
    return Backend(
        "tensorrt",
        "for builds make TensorRT's engines too; an engine directory without them runs on torch, with the plugins",
    )


def render(findings: Sequence[Finding]) -> RenderableType:
    """A list of the findings, what each lack costs, and the backend."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(finding.subject, Text(finding.state, _STYLES[finding.state]), _text(finding))
    backend = likely_backend(findings)
    return Group(table, "", Text(f"--backend auto takes {backend.name} for a 16-bit engine here, {backend.reason}."))


def write_json(path: Path, version: str, findings: Sequence[Finding]) -> None:
    """Raises InputError when `path` cannot be written."""
    document = {
        "schema": SCHEMA,
        "version": version,
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "backend": dataclasses.asdict(likely_backend(findings)),
    }
    try:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot write the report: {error}") from error


def _text(finding: Finding) -> Text:
    text = Text("\n".join(finding.details))
    if finding.cost:
        text.append("\n" if finding.details else "")
        text.append("costs: ", "bold").append(finding.cost)
    return text
