"""From logits to a distribution to a token; the same for drafts and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.runtime.device.slot_state import SlotState
from sparsespec.runtime.sampling_params import SamplingNeeds


@dataclass(frozen=True)
class RowSampling:
    """Parameters of each of n logit rows."""

    position: Tensor  # [n] int64: position of the token that the row decides
    seed: Tensor  # [n] int64
    temperature: Tensor  # [n], 0 for greedy
    top_k: Tensor  # [n] int64, 0 for all
    top_p: Tensor  # [n]
    min_len: Tensor  # [n] int64
    stop_token_ids: Tensor  # [n, MAX_STOP_TOKEN_IDS] int64

    @staticmethod
    def of(state: SlotState, slot: Tensor, position: Tensor) -> RowSampling:
        """Gather the parameters of rows that belong to slots [n]."""
        return RowSampling(
            position=position,
            seed=state.seed[slot],
            temperature=state.temperature[slot],
            top_k=state.top_k[slot],
            top_p=state.top_p[slot],
            min_len=state.min_len[slot],
            stop_token_ids=state.stop_token_ids[slot],
        )


def probabilities(logits: Tensor, rows: RowSampling, needs: Sequence[SamplingNeeds]) -> Tensor:
    """Distributions [n, vocab] to sample from: stop tokens masked while too early, temperature, top-k, then top-p.

    Greedy rows are one-hot, the lowest token of equal logits. fp32, or fp64 for fp64 logits. needs: of the requests
    that the rows belong to, in any order; what none of them needs is not computed.
    """
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    masked = _mask_early_stops(logits.to(exact), rows)
    greedy = (rows.temperature == 0)[:, None]
    one_hot = torch.zeros_like(masked).scatter_(1, masked.argmax(dim=1, keepdim=True), 1.0)
    if not any(need.probabilities for need in needs):
        return one_hot
    below_best = masked - masked.amax(dim=1, keepdim=True)  # a tiny temperature may overflow towards -inf only
    scaled = below_best / rows.temperature[:, None].masked_fill(greedy, 1.0)
    sampled = scaled.softmax(dim=1)
    if any(need.cuts for need in needs):
        cut = (rows.top_k > 0) | (rows.top_p < 1)  # rows without cuts keep every bit, whoever shares their step
        sampled = torch.where(cut[:, None], _cut(scaled, rows.top_k, rows.top_p), sampled)
    return torch.where(greedy, one_hot, sampled)


def draw(distribution: Tensor, uniform: Tensor) -> Tensor:
    """Tokens [n] by inverse transform of distribution [n, vocab], normalised or not, at uniform [n] in [0, 1)."""
    cumulative = distribution.double().cumsum(dim=1)
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=distribution.shape[1] - 1)


def _mask_early_stops(logits: Tensor, rows: RowSampling) -> Tensor:
    early = (rows.position < rows.min_len)[:, None]
    stops = logits.gather(1, rows.stop_token_ids).masked_fill(early, -torch.inf)
    return logits.scatter(1, rows.stop_token_ids, stops)


def _cut(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    ranked, order = logits.sort(dim=1, descending=True, stable=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    beyond = (rank >= top_k[:, None]) & (top_k > 0)[:, None]
    kept = ranked.masked_fill(beyond, -torch.inf).softmax(dim=1)
    mass_before = kept.cumsum(dim=1) - kept
    kept = kept.masked_fill((mass_before >= top_p[:, None]) & (rank > 0), 0.0)
    kept = kept / kept.sum(dim=1, keepdim=True)
    return torch.zeros_like(logits).scatter_(1, order, kept)
