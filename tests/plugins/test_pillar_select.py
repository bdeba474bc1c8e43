from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import StepInputs
from sparsespec.plugins.pillar_select.reference import PillarScores, pillar_select

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
UNTOUCHED = -7


def step_inputs(
    device: str, recent_start: list[int], num_staying: list[int], num_moving: list[int]
) -> StepInputs[Tensor]:
    """What PillarSelect reads; the rest has no sensible value here."""

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    size = len(recent_start)
    nothing = ints([UNTOUCHED] * (size + 1))
    return StepInputs(
        row_start=nothing,
        phase=ints([Phase.VERIFY] * size),
        draft_index=nothing[1:],
        score_rows=nothing[1:],
        score_index=nothing[1:],
        kv_len=nothing[1:],
        recent_start=ints(recent_start),
        num_staying=ints(num_staying),
        num_moving=ints(num_moving),
        lookups=nothing[:, None],
        num_lookups=nothing[1:],
        page_table=nothing[:, None],
        rope_table=nothing[:, None].double(),
    )


def select(scores: PillarScores, step: StepInputs[Tensor], slots: list[int], max_budget: int) -> Tensor:
    num_layers, _, num_kv_heads, _ = scores.staying.shape
    shape = (num_layers, len(step.recent_start), num_kv_heads, max_budget)
    pillars = torch.full(shape, UNTOUCHED, dtype=torch.int32, device=scores.staying.device)
    pillar_select(scores, pillars, step, slots)
    return pillars


def best(scores: list[float], recent_start: int, count: int) -> list[int]:
    """Positions of the highest scores before recent_start, the lower position first where they are equal."""
    return sorted(sorted(range(recent_start), key=lambda position: (-scores[position], position))[:count])


@st.composite
def some_scores(draw: st.DrawFn, shape: tuple[int, ...], recent_start: list[int]) -> Tensor:
    """Few distinct scores make ties, and positions from recent_start on score most."""
    levels = draw(st.sampled_from([1, 3, 1000]))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scores = torch.randint(levels, shape, generator=generator).to(dtype) / levels
    for place, start in enumerate(recent_start):
        scores[:, place, :, start:] = torch.inf
    return scores


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_ragged_slots(device: str, data: st.DataObject) -> None:
    """Every layer, slot and head has its own pillars: those that stay, then those that move."""
    num_slots, num_layers, num_kv_heads = data.draw(st.integers(1, 4)), 2, data.draw(st.integers(1, 3))
    moves = data.draw(st.booleans())
    recent_start = data.draw(st.lists(st.integers(0, 40), min_size=num_slots, max_size=num_slots))
    num_staying = [data.draw(st.sampled_from([0, high]) | st.integers(0, high)) for high in recent_start]
    num_moving = [data.draw(st.sampled_from([0, high]) | st.integers(0, high)) if moves else 0 for high in recent_start]
    slots = data.draw(st.permutations(range(num_slots)))[: data.draw(st.integers(0, num_slots))]
    shape = (num_layers, len(slots), num_kv_heads, 48)
    starts = [recent_start[slot] for slot in slots]
    staying, moving = data.draw(some_scores(shape, starts)), data.draw(some_scores(shape, starts))
    scores = PillarScores(staying.to(device), moving.to(device) if moves else None)
    found = select(scores, step_inputs(device, recent_start, num_staying, num_moving), slots, max_budget=81).tolist()
    for layer in range(num_layers):
        for slot in range(num_slots):
            for head in range(num_kv_heads):
                chosen: list[int] = []
                if slot in slots:
                    place = (layer, slots.index(slot), head)
                    chosen = best(staying[place].tolist(), recent_start[slot], num_staying[slot])
                    chosen += best(moving[place].tolist(), recent_start[slot], num_moving[slot])
                assert found[layer][slot][head] == chosen + [UNTOUCHED] * (81 - len(chosen))


@pytest.mark.parametrize("device", DEVICES)
def test_worked_by_hand(device: str) -> None:
    """Of 0.3, 0.1, 0.3, 0.5 and 0.3 before position 5, the three best are 3, then the lower two of the equal ones.

    The two to move from are 4 and the lower one of the equal ones; that 0 is among those that stay does not matter.
    """
    staying = torch.tensor([0.3, 0.1, 0.3, 0.5, 0.3, 0.9], device=device).reshape(1, 1, 1, 6)
    moving = torch.tensor([0.2, 0.1, 0.2, 0.0, 0.7, 0.9], device=device).reshape(1, 1, 1, 6)
    step = step_inputs(device, recent_start=[5], num_staying=[3], num_moving=[2])
    pillars = select(PillarScores(staying, moving), step, [0], max_budget=6)
    assert pillars.flatten().tolist() == [0, 2, 3, 0, 4, UNTOUCHED]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1000, 9000])
def test_long_context_of_equal_scores(device: str, length: int) -> None:
    """A sort that is not stable shows only in long rows."""
    scores = torch.zeros(2, 1, 2, length, device=device)
    scores[1, 0, 1, -10:-5] = 1.0
    step = step_inputs(device, [length - 5], [64], [64])
    pillars = select(PillarScores(scores, scores), step, [0], max_budget=128).tolist()
    newest = [*range(59), *range(length - 10, length - 5)]
    assert pillars[0][0] == [[*range(64), *range(64)]] * 2
    assert pillars[1][0] == [[*range(64), *range(64)], [*newest, *newest]]
