"""The tensors of AcceptDrafts, by the names that the plugin and the runtime share, in the plugin's order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

TensorT = TypeVar("TensorT")

# Parts of a budget, as budget_split has them.
BUDGET_PARTS = ("staying", "recent", "moving", "lookups")

# Of a slot's results, before its tokens.
RESULT_FIELDS = ("num_tokens", "num_drafts", "num_accepted", "kv_len", "recent_start", "num_chosen")


@dataclass(frozen=True)
class AcceptDraftsInputs(Generic[TensorT]):
    """A step's blocks and the model's word on them, and from token_ids on what the op writes in place.

    int32 where nothing else is said; B = max_batch_size. A block is a verification or the end of a prompt. Chunks that
    end before their prompt does only move kv_len.
    """

    logits: TensorT  # [num_logits, vocab_size] of the model's type, or fp32
    row_max: TensorT  # [num_logits] fp32, and below: see RowStatistics
    row_sum: TensorT
    row_token: TensorT
    row_cut_logit: TensorT
    row_cut_token: TensorT
    draft_probs: TensorT | None  # [B, k, vocab_size] fp32; None: coupling gumbel
    row_start: TensorT  # [B + 1]
    phase: TensorT  # [B]
    logit_start: TensorT  # [B + 1]: see StepRowsInputs
    block_rows: TensorT  # [B] rows of the block that ends in this step; 0 for none
    score_rows: TensorT  # [B]: see StepInputs, also for score_index
    score_index: TensorT  # [B]
    num_drafts: TensorT  # [B] drafts to verify; no more than there are rows for
    temperature: TensorT  # [B] fp32
    seed: TensorT  # [B] int64
    end_len: TensorT  # [B] where kv_len stops
    budget_split: TensorT  # [max_lengths, parts of a budget] tokens that drafts read in each way, by kv_len

    token_ids: TensorT  # [B, max_positions] int64: the token after the accepted drafts
    kv_len: TensorT  # [B] and below: as the coming drafts need them
    recent_start: TensorT
    num_staying: TensorT
    num_moving: TensorT
    lookup_budget: TensorT
    scored_slot: TensorT  # [max_scored] whose scores they are
    moving_shift: TensorT  # [max_scored] tokens by which the scored block moved on
    results: TensorT  # [B, fields + k + 1] RESULT_FIELDS, then the accepted drafts and one token
