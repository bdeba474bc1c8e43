"""What the study observes, and the file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal

Study = Literal["branches", "loops"]
Half = Literal["tune", "confirm"]


@dataclass(frozen=True)
class Cell:
    """One way to draft, measured in one place."""

    study: Study
    rule: str
    ratio: float  # budget as a share of the context
    min_budget: int
    temperature: float  # 0 for greedy
    context: int  # tokens before the first draft
    half: Half  # rules are chosen on one half of the texts, and confirmed on the other


@dataclass(frozen=True)
class Observation:
    """One position of one text. Branches count expected acceptances given the drafts, loops real ones."""

    cell: Cell
    source: str
    text: str
    position: int  # which of the text's positions
    num_cycles: int
    num_accepted: float  # drafts, over all cycles
    fresh_cycles: int  # outside repetitive stretches (loops; equal to num_cycles in branches)
    fresh_accepted: float
    equals_plain: bool | None  # the answer is plain decoding's, token by token; None where none was compared

    @property
    def cluster(self) -> tuple[str, str]:
        """Observations of one text are not independent, at whatever context: prompts share their beginnings."""
        return self.source, self.text


def write_observations(path: Path, setup: dict[str, Any], observations: Sequence[Observation]) -> None:
    """One JSON file: what was run, and the observations by cell."""
    cells = list(dict.fromkeys(seen.cell for seen in observations))
    names = [field.name for field in fields(Observation)][1:]
    grouped = [
        {
            **{field.name: getattr(cell, field.name) for field in fields(Cell)},
            "observations": [list(astuple(seen)[1:]) for seen in observations if seen.cell == cell],
        }
        for cell in cells
    ]
    document = {"setup": setup, "columns": names, "cells": grouped}
    path.write_text(json.dumps(document, separators=(",", ":")).replace('{"study"', '\n{"study"') + "\n")


def read_observations(path: Path) -> tuple[dict[str, Any], list[Observation]]:
    """What write_observations wrote."""
    document = json.loads(path.read_text())
    observations = []
    for entry in document["cells"]:
        rows = entry.pop("observations")
        cell = Cell(**entry)
        observations += [Observation(cell, *row) for row in rows]
    return document["setup"], observations
