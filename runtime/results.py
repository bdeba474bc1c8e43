"""What a step brings back to the host, late. No torch."""

from __future__ import annotations

from typing import NamedTuple

from sparsespec.plugins.phase import Phase


class TokenLogprobs(NamedTuple):
    """Log-probabilities at one output token: the model's own, before penalties, masks, temperature and cuts."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token, log-probability) of the most likely ones, best first


class SlotResult(NamedTuple):
    """What one slot's VERIFY or last PREFILL chunk produced; lengths are those after it.

    A NamedTuple, as much that is made for each request in each step: it takes a third of a frozen dataclass's time.
    """

    phase: Phase
    tokens: tuple[int, ...]  # new output tokens: accepted drafts and one more; none past end_len
    num_drafts: int  # drafts that were verified: rows beyond them are padding
    num_accepted: int  # of them, those that agreed with the model
    kv_len: int
    recent_start: int
    num_chosen: int  # read before recent_start by a draft row, at most: staying and moving pillars, lookups
    logprobs: tuple[TokenLogprobs, ...]  # one per token where asked for, else empty
