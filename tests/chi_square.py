"""Pearson's chi-square test of counts against a distribution."""

from __future__ import annotations

import torch
from torch import Tensor

FALSE_ALARM_RATE = 1e-6


def p_value(counts: Tensor, distribution: Tensor) -> float:
    """Probability of counts [n] at least as far from distribution [n], if they are drawn from it.

    Cells that expect fewer than 5 counts are merged into one.
    """
    expected = distribution.double() / distribution.sum() * counts.sum()
    small = expected < 5
    observed = torch.cat((counts[~small].double(), counts[small].sum().double()[None]))
    expected = torch.cat((expected[~small], expected[small].sum()[None]))
    kept = expected > 0
    if observed[~kept].sum() > 0:
        return 0.0
    statistic = ((observed - expected)[kept].square() / expected[kept]).sum()
    freedom = torch.tensor((int(kept.sum()) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))
