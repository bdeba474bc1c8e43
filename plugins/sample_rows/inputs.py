"""The tensors of SampleRows, by the names that the plugin and the runtime share, in the plugin's order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

TensorT = TypeVar("TensorT")


@dataclass(frozen=True)
class SampleRowsInputs(Generic[TensorT]):
    """Logits and whose they are; draft_probs and token_ids are written in place where a row drafts."""

    logits: TensorT  # [num_logits, vocab_size] of the model's type, or fp32
    logit_slot: TensorT  # [num_logits] int32, -1 for nobody's
    logit_position: TensorT  # [num_logits] int32: position of the token that the row decides
    phase: TensorT  # [B] int32
    draft_index: TensorT  # [B] int32
    temperature: TensorT  # [B] fp32, 0 for greedy
    min_p: TensorT  # [B] fp32, 0 for all; of greedy rows also top_k and top_p are ignored
    top_k: TensorT  # [B] int64, 0 for all
    top_p: TensorT  # [B] fp32, 1 for all
    seed: TensorT  # [B] int64

    # [B, k, vocab_size] fp32: what a draft was drawn from; of greedy ones nothing is written. None: coupling gumbel
    draft_probs: TensorT | None
    token_ids: TensorT  # [B, max_positions] int64


@dataclass(frozen=True)
class RowStatistics(Generic[TensorT]):
    """What is known of each row of logits; nothing of nobody's."""

    row_max: TensorT  # [num_logits] fp32: the largest logit
    row_sum: (
        TensorT  # [num_logits] fp32: of exp((logit - row_max) / temperature) of what is kept; 1 if greedy or coupled
    )
    row_token: TensorT  # [num_logits] int32: the most likely token, the lowest of equals; the drawn one if coupled
    # Kept are the tokens of larger logits than row_cut_logit, and those of equal ones up to row_cut_token.
    row_cut_logit: TensorT  # [num_logits] fp32; -inf without cuts
    row_cut_token: TensorT  # [num_logits] int32
