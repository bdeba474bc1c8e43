"""PillarAttention whose draft rows choose their pillars themselves, by their own attention over all tokens.

The best that any rule can do with as many tokens: the yardstick of studies. It reads every key in every draft row.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import AttentionInputs, PillarAttentionParams
from sparsespec.plugins.pillar_attention.reference import pillar_attention
from sparsespec.plugins.pillar_select.inputs import SelectInputs
from sparsespec.plugins.pillar_select.reference import pillar_select


def oracle_attention(params: PillarAttentionParams, inputs: AttentionInputs[Tensor]) -> Tensor:
    """As pillar_attention, after writing the pillars of the slots that draft."""
    step = inputs.step
    drafts = step.phase == Phase.DRAFT
    if drafts.any():
        slot = torch.arange(len(drafts), dtype=torch.int32, device=drafts.device)
        pillar_select(
            SelectInputs(
                scores=_draft_scores(params, inputs)[None],
                scored_slot=torch.where(drafts, slot, -1).int(),
                moving_shift=torch.zeros_like(slot),
                recent_start=step.recent_start,
                num_staying=step.num_staying,
                num_moving=step.num_moving,
                pillars=inputs.layer.pillars[None],
            )
        )
    return pillar_attention(params, inputs)


def _draft_scores(params: PillarAttentionParams, inputs: AttentionInputs[Tensor]) -> Tensor:
    """[B, 1, num_kv_heads, max_positions]: what draft rows attend to if they are verified alone."""
    step = inputs.step
    drafts = step.phase == Phase.DRAFT
    alone = replace(
        step,
        phase=torch.where(drafts, Phase.VERIFY, Phase.IDLE).int(),
        score_rows=drafts.int(),
        score_index=torch.arange(len(drafts), dtype=torch.int32, device=drafts.device),
    )
    shape = (len(drafts), 1, params.num_kv_heads, len(step.rope_table))
    scores = torch.zeros(shape, dtype=step.rope_table.dtype, device=step.phase.device)
    layer = replace(inputs.layer, scores=scores)
    pillar_attention(replace(params, score_planes="mean"), replace(inputs, layer=layer, step=alone))
    return scores
