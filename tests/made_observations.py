"""Observations of an acceptance study that nobody ran: rules of known means on texts that differ."""

from __future__ import annotations

import random
from collections.abc import Sequence

from acceptance_study.observations import Cell, Observation

CYCLES = 4


def make_cell(rule: str = "paper", ratio: float = 0.05, context: int = 1024, temperature: float = 0.0) -> Cell:
    """A cell of the branches, on the half that rules are chosen on."""
    return Cell("branches", rule, ratio, 1, temperature, context, "tune")


def see(cell: Cell, text: str, mean: float, position: int = 0, source: str = "reference") -> Observation:
    """A few cycles that accepted `mean` drafts each; of the last one, fresh, one draft more."""
    total = CYCLES * mean
    return Observation(cell, source, text, position, CYCLES, total, 1, mean + 1, None)


def see_texts(cell: Cell, mean: float, num_texts: int = 12, spread: float = 1.0) -> list[Observation]:
    """Two positions in each of the texts. How hard a text is, all rules share; beside that, a rule has some luck."""
    seen = []
    for number in range(num_texts):
        hardness = random.Random(f"{number} {cell.context}").gauss(0.0, spread)
        for position in range(2):
            luck = random.Random(f"{number} {position} {cell}").gauss(0.0, 0.1)
            source = ("licences", "reference")[number % 2]
            seen.append(see(cell, f"text {number}", mean + hardness + luck, position, source))
    return seen


def see_study(cells: Sequence[Cell], means: dict[str, float]) -> list[Observation]:
    """Every cell on the same texts, a rule about at its mean."""
    return [one for cell in cells for one in see_texts(cell, means[cell.rule])]
