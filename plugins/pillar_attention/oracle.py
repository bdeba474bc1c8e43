"""PillarAttention whose draft rows choose their pillars themselves, by their own attention over all tokens.

The best that any rule can do with as many tokens: the yardstick of studies. It reads every key in every draft row.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import LayerInputs, PillarAttentionParams, QkNorm, StepInputs
from sparsespec.plugins.pillar_attention.reference import pillar_attention
from sparsespec.plugins.pillar_select.reference import PillarScores, pillar_select


def oracle_attention(
    params: PillarAttentionParams,
    qkv: Tensor,
    qk_norm: QkNorm[Tensor] | None,
    layer: LayerInputs[Tensor],
    step: StepInputs[Tensor],
) -> Tensor:
    """As pillar_attention, after writing the pillars of the slots that draft."""
    slots = (step.phase == Phase.DRAFT).nonzero().flatten().tolist()
    if slots:
        scores = _draft_scores(params, qkv, qk_norm, layer, step)[slots].transpose(0, 1)
        pillar_select(PillarScores(scores, None), layer.pillars[None], step, slots)
    return pillar_attention(params, qkv, qk_norm, layer, step)


def _draft_scores(
    params: PillarAttentionParams,
    qkv: Tensor,
    qk_norm: QkNorm[Tensor] | None,
    layer: LayerInputs[Tensor],
    step: StepInputs[Tensor],
) -> Tensor:
    """[B, 1, num_kv_heads, max_positions]: what draft rows attend to if they are verified alone."""
    drafts = step.phase == Phase.DRAFT
    alone = replace(
        step,
        phase=torch.where(drafts, Phase.VERIFY, Phase.IDLE).int(),
        score_rows=drafts.int(),
        score_index=torch.arange(len(drafts), dtype=torch.int32, device=drafts.device),
    )
    shape = (len(drafts), 1, params.num_kv_heads, len(step.rope_table))
    scores = torch.zeros(shape, dtype=step.rope_table.dtype, device=qkv.device)
    pillar_attention(replace(params, score_planes="mean"), qkv, qk_norm, replace(layer, scores=scores), alone)
    return scores
