"""The ways to draft that are compared: each reads at most the same number of tokens per KV head and draft row."""

from __future__ import annotations

from dataclasses import replace

from sparsespec.runtime.config import SpeculationConfig

# The paper's rule: pillars that stay, by the mean over all verified rows, and nothing but the last block beside them.
PAPER = SpeculationConfig(recent_share=0.0, moving_share=0.0, num_lookups=0, ranking="mean")
SHIPPED = SpeculationConfig()

RULES: dict[str, SpeculationConfig] = {
    "paper": PAPER,
    "recent25": replace(PAPER, recent_share=0.25),
    "recent50": replace(PAPER, recent_share=0.5),
    "accepted": replace(PAPER, ranking="accepted"),
    "average": replace(PAPER, ranking="average"),
    "moving last": replace(PAPER, moving_share=0.25, moving_from="last"),
    "moving": replace(PAPER, moving_share=0.25, moving_from="diagonal"),
    "lookups": replace(PAPER, num_lookups=16),
    "moving last lookups": replace(PAPER, moving_share=0.25, moving_from="last", num_lookups=16),
    "moving lookups": replace(PAPER, moving_share=0.25, num_lookups=16),
    "recent25 moving lookups": replace(PAPER, recent_share=0.25, moving_share=0.25, num_lookups=16),
    "recent50 moving lookups": replace(PAPER, recent_share=0.5, moving_share=0.25, num_lookups=16),
    "window": SpeculationConfig(drafter="window"),
    "ngram": SpeculationConfig(drafter="ngram"),
    "oracle": SpeculationConfig(drafter="oracle", recent_share=0.0),
}


def rule(name: str, ratio: float, min_budget: int) -> SpeculationConfig:
    """A rule at a budget; "default" is what ships, which goes by its own."""
    if name == "default":
        return SHIPPED
    return replace(RULES[name], ratio=ratio, min_budget=min_budget)
