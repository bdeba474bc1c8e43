"""Drafts without the model: what followed the last time the newest tokens occurred (prompt lookup).

Elementwise in the slots' tokens, at a cost of S * P * max_ngram; the host reads nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NgramRule:
    """Which repetitions count, and how many drafts they give."""

    k: int
    max_ngram: int  # longer matches are not told apart from those of max_ngram tokens
    min_ngram: int  # shorter matches are none

    def __post_init__(self) -> None:
        assert self.k >= 1
        assert 1 <= self.min_ngram <= self.max_ngram


@dataclass(frozen=True)
class NgramDrafts:
    """Drafts of S slots."""

    tokens: Tensor  # [S, k] int64; 0 where there are none
    num_drafts: Tensor  # [S] int64: k, or 0 where nothing matches


def propose(token_ids: Tensor, length: Tensor, rule: NgramRule) -> NgramDrafts:
    """Continue token_ids[s, :length[s]] by its own past; tokens at and beyond `length` [S] int64 are not looked at.

    token_ids: [S, P] int64, P at least 1. The longest match counts, and of equally long ones the most recent: text
    that repeats itself drifts, and its last version is the best guess at the next. A continuation that reaches the end
    goes on with its own beginning, at the same distance d from the match: token i repeats the one d places before it.
    So a loop of any period is continued for all k drafts.
    """
    matched = matched_tokens(token_ids, length, rule.max_ngram)
    index = torch.arange(token_ids.shape[1], device=token_ids.device)
    best = (matched * len(index) + index).argmax(dim=1, keepdim=True)
    missing = matched.gather(1, best) < rule.min_ngram
    distance = (length[:, None] - 1 - best).masked_fill(missing, 1)
    step = torch.arange(rule.k, device=token_ids.device)
    source = (best + 1 + step % distance).masked_fill(missing, 0)
    return NgramDrafts(
        tokens=token_ids.gather(1, source).masked_fill(missing, 0),
        num_drafts=torch.full_like(length, rule.k).masked_fill(missing[:, 0], 0),
    )


def matched_tokens(token_ids: Tensor, length: Tensor, max_ngram: int) -> Tensor:
    """[S, P] how many tokens, up to max_ngram, agree going back from each place and from the last known token.

    0 from that token on: only earlier places have something after them.
    """
    index = torch.arange(token_ids.shape[1], device=token_ids.device)
    agrees = index < length[:, None] - 1
    matched = torch.zeros_like(token_ids)
    for back in range(max_ngram):
        last = token_ids.gather(1, (length[:, None] - 1 - back).clamp(min=0))
        agrees = agrees & (index >= back) & (token_ids.roll(back, dims=1) == last)
        matched = matched + agrees
    return matched
