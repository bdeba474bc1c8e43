"""PillarSelect in torch: variable-length top-k over all layers, scored slots and KV heads."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsespec.plugins.pillar_select.inputs import SelectInputs


def pillar_select(inputs: SelectInputs[Tensor]) -> None:
    """Write the pillars of the scored slots, in place.

    For each layer, slot s and KV head: the num_staying[s] best positions before recent_start[s], ascending, then the
    num_moving[s] best ones to move from, ascending. Equal scores: the lower position wins. NaN is above all numbers.
    """
    scored = [place for place, slot in enumerate(inputs.scored_slot.tolist()) if slot >= 0]
    if not scored:
        return
    place = torch.tensor(scored, device=inputs.pillars.device)
    slot = inputs.scored_slot[place].long()
    columns = (inputs.recent_start, inputs.num_staying, inputs.num_moving)
    recent_start, num_staying, num_moving = torch.stack([column[slot] for column in columns]).long()
    planes = inputs.scores[:, place].unbind(dim=2)
    staying = _best(planes[0], recent_start, num_staying)
    _write(inputs.pillars, slot, torch.zeros_like(num_staying), num_staying, staying)
    if len(planes) == 2:
        moving = _best(_shifted(planes[1], inputs.moving_shift[place].long()), recent_start, num_moving)
        _write(inputs.pillars, slot, num_staying, num_moving, moving)


def _shifted(scores: Tensor, steps: Tensor) -> Tensor:
    """scores [num_layers, S, num_kv_heads, positions], those of slot s moved on by steps[s] positions."""
    source = torch.arange(scores.shape[3], device=scores.device) - steps[:, None]
    index = source.clamp(min=0)[None, :, None].expand_as(scores)
    return scores.gather(3, index).masked_fill((source < 0)[None, :, None], 0)


def _best(scores: Tensor, recent_start: Tensor, count: Tensor) -> Tensor:
    """[..., S, num_kv_heads, largest count] int32: the count[s] best positions of slot s, ascending, then the rest."""
    index = torch.arange(int(recent_start.max()), device=scores.device)
    unseen = index >= recent_start[:, None, None]
    known = scores[..., : len(index)].masked_fill(unseen, -torch.inf)
    known = known.masked_fill(known.isnan(), torch.nan)  # on a GPU torch ranks negative NaN lowest
    ranked = known.sort(dim=-1, descending=True, stable=True).indices[..., : int(count.max())]
    beyond = index[: ranked.shape[-1]] >= count[:, None, None]
    return ranked.masked_fill(beyond, len(index)).sort(dim=-1).values.int()


def _write(pillars: Tensor, slots: Tensor, first: Tensor, count: Tensor, best: Tensor) -> None:
    for place, (slot, start, size) in enumerate(zip(slots.tolist(), first.tolist(), count.tolist(), strict=True)):
        pillars[:, slot, :, start : start + size] = best[:, place, :, :size]
