"""The ways to draft that are compared: each reads at most the same number of tokens per KV head and draft row."""

from __future__ import annotations

from dataclasses import replace

from sparsespec.runtime.config import SpeculationConfig

PAPER, DEFAULT, EXACT, WINDOW, NGRAM, ORACLE = "paper", "default", "default exact", "window", "ngram", "oracle"

# The paper's rule: pillars that stay, by the mean over all verified rows, and nothing but the last block beside them.
# Scored exactly, as all that follow from it are in the stored results.
_PAPER_CONFIG = SpeculationConfig(
    recent_share=0.0, moving_share=0.0, max_lookups=0, ranking="mean", score_normalizer="exact"
)
SHIPPED = SpeculationConfig()
# These go by their own budget; the stored results of "default" were scored exactly.
AS_SHIPPED = {DEFAULT: SHIPPED, EXACT: replace(SHIPPED, score_normalizer="exact")}

RULES: dict[str, SpeculationConfig] = {
    PAPER: _PAPER_CONFIG,
    "recent25": replace(_PAPER_CONFIG, recent_share=0.25),
    "recent50": replace(_PAPER_CONFIG, recent_share=0.5),
    "accepted": replace(_PAPER_CONFIG, ranking="accepted"),
    "average": replace(_PAPER_CONFIG, ranking="average"),
    "moving last": replace(_PAPER_CONFIG, moving_share=0.25, moving_from="last"),
    "moving": replace(_PAPER_CONFIG, moving_share=0.25, moving_from="diagonal"),
    "lookups": replace(_PAPER_CONFIG, max_lookups=16),
    "moving last lookups": replace(_PAPER_CONFIG, moving_share=0.25, moving_from="last", max_lookups=16),
    "moving lookups": replace(_PAPER_CONFIG, moving_share=0.25, max_lookups=16),
    "recent25 moving lookups": replace(_PAPER_CONFIG, recent_share=0.25, moving_share=0.25, max_lookups=16),
    "recent50 moving lookups": replace(_PAPER_CONFIG, recent_share=0.5, moving_share=0.25, max_lookups=16),
    WINDOW: SpeculationConfig(drafter="window"),
    NGRAM: SpeculationConfig(drafter="ngram"),
    ORACLE: SpeculationConfig(drafter="oracle", recent_share=0.0),
}


def rule(name: str, ratio: float, min_budget: int) -> SpeculationConfig:
    """A rule at a budget, or what ships at its own."""
    if name in AS_SHIPPED:
        return AS_SHIPPED[name]
    return replace(RULES[name], ratio=ratio, min_budget=min_budget)
