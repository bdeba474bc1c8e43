"""Log-probabilities of rows of logits: the model's own, before penalties, masks, temperature and cuts (as in vLLM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.runtime.device.sampling import exact
from sparsespec.runtime.results import TokenLogprobs
from sparsespec.runtime.sampling_params import MAX_LOGPROBS


@dataclass(frozen=True)
class RowLogprobs:
    """Of n rows, on the device or on the host; T is MAX_LOGPROBS, or the vocabulary where that is smaller."""

    values: Tensor  # [n, 1 + T] fp32, or fp64 of fp64 logits: of the row's token, then of the most likely ones
    top_ids: Tensor  # [n, T] int64: the most likely tokens, best first

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Its fields."""
        return self.values, self.top_ids

    def first(self, count: int) -> RowLogprobs:
        """Views of the first rows."""
        return RowLogprobs(self.values[:count], self.top_ids[:count])

    def listed(self, most: int) -> ListedLogprobs:
        """As Python's numbers, of rows that are on the host, with no more than `most` alternatives each."""
        return ListedLogprobs(self.values[:, : 1 + most].tolist(), self.top_ids[:, :most].tolist())


@dataclass(frozen=True)
class ListedLogprobs:
    """RowLogprobs in lists: to take a row out of a tensor takes longer than to list them all."""

    values: list[list[float]]
    top_ids: list[list[int]]

    def told(self, first_row: int, tokens: Sequence[int], count: int) -> tuple[TokenLogprobs, ...]:
        """Of consecutive rows' tokens, with `count` alternatives each, or as many as there are."""
        rows = slice(first_row, first_row + len(tokens))
        told = zip(tokens, self.values[rows], self.top_ids[rows], strict=True)
        return tuple(
            [
                TokenLogprobs(token, values[0], tuple(zip(ids[:count], values[1 : 1 + count], strict=True)))
                for token, values, ids in told
            ]
        )


def row_logprobs(logits: Tensor, tokens: Tensor) -> RowLogprobs:
    """Of logits [n, vocab] and a token [n] of each row."""
    numbers = exact(logits)
    top = numbers.topk(min(MAX_LOGPROBS, numbers.shape[1]), dim=1)
    values = torch.cat((numbers.gather(1, tokens[:, None]), top.values), dim=1)
    return RowLogprobs(values - numbers.logsumexp(dim=1, keepdim=True), top.indices)
