"""PillarSelect in torch: variable-length top-k over all layers, scored slots and KV heads."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsespec.plugins.pillar_attention.inputs import StepInputs


def pillar_select(scores: Tensor, pillars: Tensor, step: StepInputs[Tensor]) -> None:
    """Write the pillars of every scored slot, in place.

    scores: [num_layers, max_scored, num_kv_heads, max_positions]; pillars: [num_layers, B, num_kv_heads, max_budget].
    For each layer, scored slot s and KV head: the num_pillars[s] highest-scored positions before recent_start[s],
    ascending. Equal scores: the lower position wins. num_pillars and recent_start are those of the coming drafts.
    """
    score_rows, score_index = step.score_rows.tolist(), step.score_index.tolist()
    num_pillars, recent_start = step.num_pillars.tolist(), step.recent_start.tolist()
    for slot in [slot for slot, rows in enumerate(score_rows) if rows > 0]:
        candidates = scores[:, score_index[slot], :, : recent_start[slot]]
        ranked = torch.sort(candidates, dim=-1, descending=True, stable=True).indices
        chosen = ranked[..., : num_pillars[slot]].sort(dim=-1).values
        pillars[:, slot, :, : num_pillars[slot]] = chosen.to(pillars.dtype)
