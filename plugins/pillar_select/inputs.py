"""The tensors PillarSelect reads, by the names that the plugin and the runtime share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

TensorT = TypeVar("TensorT")


@dataclass(frozen=True)
class SelectInputs(Generic[TensorT]):
    """Scores of the first S of max_scored blocks, the lengths of the coming drafts, and the pillars, written in place.

    Plane 0 tells which pillars stay. Plane 1, where there is one, tells from where pillars move: position p moves on
    from where plane 1 has p - moving_shift, so the score of p is 0 where p < moving_shift. Without it none are written.
    """

    scores: TensorT  # [num_layers, max_scored, planes (1 or 2), num_kv_heads, positions]
    scored_slot: TensorT  # [S] int32 whose scores they are; -1 for nobody's
    moving_shift: TensorT  # [S] int32, 0 or more
    recent_start: TensorT  # [B] int32
    num_staying: TensorT  # [B] int32
    num_moving: TensorT  # [B] int32
    pillars: TensorT  # [num_layers, B, num_kv_heads, max_budget] int32
