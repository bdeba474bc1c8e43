"""Positions worth reading because of the text alone: those after earlier occurrences of the newest token.

Pillars were chosen by past queries; a new token sends the heads that copy (Olsson et al. 2022, "induction heads") to
where it occurred before. Finding those places reads token ids only: 8 bytes of a token, whose
keys and values are tens of kilobytes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsespec.runtime.device.ngram import matched_tokens

# Longer matches are not told apart.
_MAX_MATCH = 4


def find_lookups(token_ids: Tensor, length: Tensor, before: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[D, count] int32 positions below before [D], and [D] how many there are; the rest of a row means nothing.

    token_ids: [D, P] int64, of which length [D] int64 are known. After the longest matches first, then the most recent.
    """
    matched = matched_tokens(token_ids, length, _MAX_MATCH)
    index = torch.arange(token_ids.shape[1], device=token_ids.device)
    rank = (matched * len(index) + index).masked_fill((matched == 0) | (index + 1 >= before[:, None]), -1)
    best = pad(rank, (0, max(0, count - len(index))), value=-1).topk(count, dim=1)
    return (best.indices + 1).int(), (best.values >= 0).sum(dim=1).int()
