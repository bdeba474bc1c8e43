"""The tensors of StepRows, by the names that the plugin and the runtime share, in the plugin's order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

TensorT = TypeVar("TensorT")


@dataclass(frozen=True)
class StepRowsInputs(Generic[TensorT]):
    """What the host sends, the lengths it is about, and from page_table on what the op writes in place.

    int32 but for token_ids, row_token and logit_rows, which are int64. B = max_batch_size. Rows and logits of a step
    are in the order of slots; num_rows and num_logits are those of its CUDA graph, so the last of them may be padding.
    """

    row_start: TensorT  # [B + 1]: see StepInputs, also for phase and draft_index
    phase: TensorT  # [B]
    draft_index: TensorT  # [B]
    logit_start: TensorT  # [B + 1] CSR: the logits of each slot, which are of its last rows
    num_grants: TensorT  # [1]
    grant_place: TensorT  # [max_grants] where in the flattened page_table a page is added
    grant_page: TensorT  # [max_grants]
    kv_len: TensorT  # [B]
    recent_start: TensorT  # [B]
    lookup_budget: TensorT  # [B] most lookups of a draft
    token_ids: TensorT  # [B, max_positions] prompt, output and this cycle's drafts

    page_table: TensorT  # [B, max_pages]
    lookups: TensorT  # [B, max_lookups] of slots that draft: see runtime.device.lookup
    num_lookups: TensorT  # [B]
    row_token: TensorT  # [num_rows]; 0 in padding
    logit_rows: TensorT  # [num_logits] row of each logit; 0 in padding
    logit_slot: TensorT  # [num_logits] -1 in padding
    logit_position: TensorT  # [num_logits] position of the token that the logits decide; 0 in padding
    scored_slot: TensorT  # [max_scored] -1 from here on: AcceptDrafts says whose scores there are
