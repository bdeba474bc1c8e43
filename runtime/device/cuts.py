"""Which tokens a row keeps: a prefix of its tokens by logit, the greatest first, and of equal logits by token.

So two numbers say it, the lowest logit that is kept and, of the tokens that have it, the last one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LAST_TOKEN = 2**31 - 1  # of a row that keeps all tokens with its lowest logit


@dataclass(frozen=True)
class CutRules:
    """What n rows ask for, [n] each."""

    temperature: Tensor  # above 0
    min_p: Tensor  # 0 for all
    top_k: Tensor  # int64, 0 for all
    top_p: Tensor  # 1 for all


@dataclass(frozen=True)
class Cuts:
    """What n rows keep, [n] each."""

    logit: Tensor  # the lowest that is kept; -inf for all
    token: Tensor  # int64: the last one of that logit

    def keep(self, logits: Tensor) -> Tensor:
        """[n, vocab] bool, of the logits that the cuts were found in."""
        token = torch.arange(logits.shape[1], device=logits.device)
        lowest = self.logit[:, None]
        return (logits > lowest) | ((logits == lowest) & (token <= self.token[:, None]))


def find_cuts(logits: Tensor, rules: CutRules) -> Cuts:
    """What is left of logits [n, vocab] by min_p, then top_k, then top_p of the distribution over what these left.

    min_p keeps the tokens of at least that share of the best one's probability. top_p keeps a token if those before it
    have less than that mass. The best token always stays. Masses are summed in fp64.
    """
    ranked, order = logits.sort(dim=1, descending=True, stable=True)
    weights = ((ranked - ranked[:, :1]) / rules.temperature[:, None]).exp()
    rank = torch.arange(logits.shape[1], device=logits.device)
    top_k = torch.where(rules.top_k > 0, rules.top_k, logits.shape[1])
    kept = (weights >= rules.min_p[:, None]) & (rank < top_k[:, None])
    masses = weights.double().masked_fill(~kept, 0.0)
    before = masses.cumsum(dim=1) - masses
    kept &= (before < rules.top_p[:, None].double() * masses.sum(dim=1, keepdim=True)) | (rules.top_p == 1)[:, None]
    last = (kept.sum(dim=1, keepdim=True) - 1).clamp(min=0)
    everything = (rules.min_p == 0) & (rules.top_k == 0) & (rules.top_p == 1)
    return Cuts(
        logit=ranked.gather(1, last)[:, 0].masked_fill(everything, -torch.inf),
        token=order.gather(1, last)[:, 0].masked_fill(everything, LAST_TOKEN),
    )
