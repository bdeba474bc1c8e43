"""Which drafts stand: speculative rejection sampling (Leviathan et al. 2023, algorithm 1); greedy is a special case."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.runtime.device.sampling import draw


@dataclass(frozen=True)
class Block:
    """S verified blocks of up to K drafts, padded; V is the vocabulary."""

    drafts: Tensor  # [S, K] int64
    num_drafts: Tensor  # [S] int64
    draft_probs: Tensor  # [S, K, V] the distribution each draft was drawn from
    target_probs: Tensor  # [S, K + 1, V] the model's distributions, row i after i drafts


def count_accepted(block: Block, uniform: Tensor) -> Tensor:
    """[S] drafts accepted: up to the first i with uniform[i] * draft_prob(i) >= target_prob(i). uniform: [S, K].

    One-hot distributions (greedy) accept exactly the drafts that equal the model's choice.
    """
    chosen = block.drafts[..., None]
    target = block.target_probs[:, :-1].gather(2, chosen).squeeze(2)
    draft = block.draft_probs.gather(2, chosen).squeeze(2)
    index = torch.arange(block.drafts.shape[1], device=block.drafts.device)
    stands = (uniform * draft < target) & (index < block.num_drafts[:, None])
    return stands.long().cumprod(dim=1).sum(dim=1)


def next_token(block: Block, num_accepted: Tensor, uniform: Tensor) -> Tensor:
    """[S] the token after the accepted drafts, at uniform [S].

    From the residual max(target - draft, 0) where a draft was rejected, from the target where all were accepted. Both
    leave the target distribution unchanged.
    """
    slot = torch.arange(len(num_accepted), device=num_accepted.device)
    target = block.target_probs[slot, num_accepted]
    rejected = num_accepted < block.num_drafts
    padded = torch.nn.functional.pad(block.draft_probs, (0, 0, 0, 1))
    residual = (target - padded[slot, num_accepted]).clamp(min=0)
    usable = rejected & (residual.sum(dim=1) > 0)  # rounding can leave nothing of a residual of equal distributions
    return draw(torch.where(usable[:, None], residual, target), uniform)
