from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsespec.plugins.pillar_select.inputs import SelectInputs
from sparsespec.plugins.pillar_select.reference import pillar_select

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
UNTOUCHED = -7


@dataclass(frozen=True)
class Lengths:
    """Of every slot."""

    recent_start: list[int]
    num_staying: list[int]
    num_moving: list[int]


def select(
    scores: Tensor, scored_slot: list[int], moving_shift: list[int], lengths: Lengths, max_budget: int
) -> list[list[list[list[int]]]]:
    """The pillars of every layer, slot and head."""

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=scores.device)

    num_layers, _, _, num_kv_heads, _ = scores.shape
    shape = (num_layers, len(lengths.recent_start), num_kv_heads, max_budget)
    pillars = torch.full(shape, UNTOUCHED, dtype=torch.int32, device=scores.device)
    pillar_select(
        SelectInputs(
            scores=scores,
            scored_slot=ints(scored_slot),
            moving_shift=ints(moving_shift),
            recent_start=ints(lengths.recent_start),
            num_staying=ints(lengths.num_staying),
            num_moving=ints(lengths.num_moving),
            pillars=pillars,
        )
    )
    found: list[list[list[list[int]]]] = pillars.tolist()
    return found


def best(scores: list[float], recent_start: int, count: int) -> list[int]:
    """Positions of the highest scores before recent_start, the lower position first where they are equal."""
    ranks = [math.inf if math.isnan(score) else score for score in scores]
    return sorted(sorted(range(recent_start), key=lambda position: (-ranks[position], position))[:count])


def moved(scores: list[float], shift: int) -> list[float]:
    """Those of position p at p + shift, 0 before."""
    return ([0.0] * shift + scores)[: len(scores)]


@st.composite
def some_scores(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """Few distinct scores make ties, also among NaN."""
    levels = draw(st.sampled_from([1, 3, 1000]))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scores = torch.randint(levels, shape, generator=generator).to(dtype) / levels
    if draw(st.booleans()):
        scores[torch.rand(shape, generator=generator) < 0.1] = torch.nan
    return scores


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_ragged_slots(device: str, data: st.DataObject) -> None:
    """Every layer, slot and head has its own pillars: those that stay, then those that move. Some places are empty."""
    num_slots, num_layers, num_kv_heads = data.draw(st.integers(1, 4)), 2, data.draw(st.integers(1, 3))
    num_planes = data.draw(st.integers(1, 2))
    recent_start = data.draw(st.lists(st.integers(0, 40), min_size=num_slots, max_size=num_slots))
    num_staying, num_moving = (
        [data.draw(st.sampled_from([0, high]) | st.integers(0, high)) for high in recent_start] for _ in range(2)
    )
    places = [*range(num_slots), -1, -1]
    scored_slot = data.draw(st.permutations(places))[: data.draw(st.integers(1, len(places)))]
    shifts = data.draw(st.lists(st.integers(0, 17), min_size=len(scored_slot), max_size=len(scored_slot)))
    scores = data.draw(some_scores((num_layers, len(scored_slot), num_planes, num_kv_heads, 48)))
    lengths = Lengths(recent_start, num_staying, num_moving)
    found = select(scores.to(device), scored_slot, shifts, lengths, max_budget=81)
    for layer, slot, head in np.ndindex(num_layers, num_slots, num_kv_heads):
        chosen: list[int] = []
        if slot in scored_slot:
            place = scored_slot.index(slot)
            planes = scores[layer, place, :, head].tolist()
            chosen = best(planes[0], recent_start[slot], num_staying[slot])
            if num_planes == 2:
                chosen += best(moved(planes[1], shifts[place]), recent_start[slot], num_moving[slot])
        assert found[layer][slot][head] == chosen + [UNTOUCHED] * (81 - len(chosen))


@pytest.mark.parametrize("device", DEVICES)
def test_worked_by_hand(device: str) -> None:
    """Of 0.3, 0.1, 0.3, 0.5 and 0.3 before position 5, the three best are 3, then the lower two of the equal ones.

    Moved on by one, 0.2, 0.1, 0.2 and 0.7 stand at 1 to 4: the best is 4, then the lower one of the equal ones. That 0
    is among those that stay does not matter.
    """
    planes = [[0.3, 0.1, 0.3, 0.5, 0.3, 0.9], [0.2, 0.1, 0.2, 0.7, 0.9, 0.9]]
    scores = torch.tensor(planes, device=device).reshape(1, 1, 2, 1, 6)
    assert select(scores, [0], [1], Lengths([5], [3], [2]), max_budget=6) == [[[[0, 2, 3, 1, 4, UNTOUCHED]]]]


@pytest.mark.parametrize("device", DEVICES)
def test_nan_is_above_all_numbers(device: str) -> None:
    """The lower position first among NaN too; what moves in at the beginning is 0 even if what moves out is NaN."""
    nan, inf = torch.nan, torch.inf
    planes = [[0.3, nan, inf, nan, 0.1, nan], [nan, -0.5, nan, -0.1, nan, nan]]
    scores = torch.tensor(planes, device=device).reshape(1, 1, 2, 1, 6)
    lengths = Lengths([6], [3], [3])
    assert select(scores, [0], [2], lengths, max_budget=6) == [[[[1, 3, 5, 0, 2, 4]]]]
    fewer = Lengths([5], [3], [2])
    assert select(scores, [0], [2], fewer, max_budget=6) == [[[[1, 2, 3, 2, 4, UNTOUCHED]]]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1000, 9000])
def test_long_context_of_equal_scores(device: str, length: int) -> None:
    """A sort that is not stable shows only in long rows."""
    scores = torch.zeros(2, 1, 2, 2, length, device=device)
    scores[1, 0, :, 1, -10:-5] = 1.0
    pillars = select(scores, [0], [0], Lengths([length - 5], [64], [64]), max_budget=128)
    newest = [*range(59), *range(length - 10, length - 5)]
    assert pillars[0][0] == [[*range(64), *range(64)]] * 2
    assert pillars[1][0] == [[*range(64), *range(64)], [*newest, *newest]]
