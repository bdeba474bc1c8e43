"""`throughput_study.agreement.agreeing_tokens` in one Triton kernel: forcing agreement takes a step next to nothing."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def agree(
    row_token,  # int32 [num_logits]: of verified blocks written up to the first that disagrees
    phase,  # int32 [B]
    kv_len,  # int32 [B]
    logit_start,  # int32 [B + 1]
    token_ids,  # int64 [B, max_positions]
    mean,  # fp32 []
    max_positions,
    vocab_size,
    VERIFY: tl.constexpr,
    NUM_DRAFTS: tl.constexpr,
    WIDTH: tl.constexpr,  # NUM_DRAFTS or more, a power of two
):
    """A program for each slot."""
    slot = tl.program_id(0)
    if tl.load(phase + slot) != VERIFY:
        return
    length = tl.load(kv_len + slot).to(tl.int64)
    wanted_mean = tl.load(mean)
    whole = tl.floor(wanted_mean)
    dice = ((length * 2654435761) & 0xFFFFFFFF).to(tl.float64) / 4294967296.0
    wanted = whole.to(tl.int32) + (dice < (wanted_mean - whole).to(tl.float64)).to(tl.int32)
    first = tl.load(logit_start + slot)
    count = tl.load(logit_start + slot + 1) - first
    index = tl.arange(0, WIDTH)
    is_draft = index < NUM_DRAFTS
    place = tl.minimum(length + 1 + index, max_positions - 1)
    drafts = tl.load(token_ids + slot.to(tl.int64) * max_positions + place, mask=is_draft, other=0).to(tl.int32)
    tokens = tl.where(index < wanted, drafts, (drafts + 1) % vocab_size)
    tl.store(row_token + first + index, tokens, mask=is_draft & (index <= wanted) & (index < count))
