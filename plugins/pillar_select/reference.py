"""PillarSelect in torch: variable-length top-k over all layers, scored slots and KV heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.plugins.pillar_attention.inputs import StepInputs


@dataclass(frozen=True)
class PillarScores:
    """What pillars are chosen by, each [num_layers, S, num_kv_heads, positions] for S slots."""

    staying: Tensor
    moving: Tensor | None  # at p: for reading position p in the first draft row, p + 1 in the next; None for none


def pillar_select(scores: PillarScores, pillars: Tensor, step: StepInputs[Tensor], slots: list[int]) -> None:
    """Write the pillars of `slots`, in place. pillars: [num_layers, B, num_kv_heads, max_budget].

    For each layer, slot s and KV head: the num_staying[s] best positions before recent_start[s], ascending, then the
    num_moving[s] best ones to move from, ascending. Equal scores: the lower position wins. The lengths are those of the
    coming drafts.
    """
    if not slots:
        return
    index = torch.tensor(slots, device=pillars.device)
    columns = (step.recent_start, step.num_staying, step.num_moving)
    recent_start, num_staying, num_moving = torch.stack([column[index] for column in columns]).long()
    _write(pillars, slots, torch.zeros_like(num_staying), num_staying, _best(scores.staying, recent_start, num_staying))
    if scores.moving is not None:
        _write(pillars, slots, num_staying, num_moving, _best(scores.moving, recent_start, num_moving))


def _best(scores: Tensor, recent_start: Tensor, count: Tensor) -> Tensor:
    """[..., S, num_kv_heads, largest count] int32: the count[s] best positions of slot s, ascending, then the rest."""
    index = torch.arange(int(recent_start.max()), device=scores.device)
    unseen = index >= recent_start[:, None, None]
    known = scores[..., : len(index)].masked_fill(unseen, -torch.inf)
    ranked = known.sort(dim=-1, descending=True, stable=True).indices[..., : int(count.max())]
    beyond = index[: ranked.shape[-1]] >= count[:, None, None]
    return ranked.masked_fill(beyond, len(index)).sort(dim=-1).values.int()


def _write(pillars: Tensor, slots: list[int], first: Tensor, count: Tensor, best: Tensor) -> None:
    for place, (slot, start, size) in enumerate(zip(slots, first.tolist(), count.tolist(), strict=True)):
        pillars[:, slot, :, start : start + size] = best[:, place, :, :size]
