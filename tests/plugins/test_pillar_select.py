from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import StepInputs
from sparsespec.plugins.pillar_select.reference import pillar_select

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
UNTOUCHED = -7


def step_inputs(
    device: str, score_rows: list[int], score_index: list[int], recent_start: list[int], num_pillars: list[int]
) -> StepInputs[Tensor]:
    """What PillarSelect reads; the rest has no sensible value here."""

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    size = len(score_rows)
    nothing = ints([UNTOUCHED] * (size + 1))
    return StepInputs(
        row_start=nothing,
        phase=ints([Phase.VERIFY] * size),
        draft_index=nothing[1:],
        score_rows=ints(score_rows),
        score_index=ints(score_index),
        kv_len=nothing[1:],
        recent_start=ints(recent_start),
        num_pillars=ints(num_pillars),
        page_table=nothing[:, None],
        rope_table=nothing[:, None].double(),
    )


def select(scores: Tensor, step: StepInputs[Tensor], max_budget: int) -> Tensor:
    num_layers, _, num_kv_heads, _ = scores.shape
    shape = (num_layers, len(step.score_rows), num_kv_heads, max_budget)
    pillars = torch.full(shape, UNTOUCHED, dtype=torch.int32, device=scores.device)
    pillar_select(scores, pillars, step)
    return pillars


def best(scores: list[float], recent_start: int, count: int) -> list[int]:
    """Positions of the highest scores before recent_start, the lower position first where they are equal."""
    return sorted(sorted(range(recent_start), key=lambda position: (-scores[position], position))[:count])


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_ragged_slots(device: str, data: st.DataObject) -> None:
    """Every layer, slot and head has its own pillars; few distinct scores make ties, and later positions score most."""
    num_slots, num_layers, num_kv_heads = data.draw(st.integers(1, 4)), 2, data.draw(st.integers(1, 3))
    recent_start = data.draw(st.lists(st.integers(0, 40), min_size=num_slots, max_size=num_slots))
    num_pillars = [data.draw(st.sampled_from([0, high]) | st.integers(0, high)) for high in recent_start]
    score_rows = data.draw(st.lists(st.sampled_from([0, 1, 9]), min_size=num_slots, max_size=num_slots))
    score_index = data.draw(st.permutations(range(num_slots + 1)))[:num_slots]
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.float16]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    levels = data.draw(st.sampled_from([1, 3, 1000]))
    scores = (
        torch.randint(levels, (num_layers, num_slots + 1, num_kv_heads, 48), generator=generator).to(dtype) / levels
    )
    for slot in range(num_slots):
        scores[:, score_index[slot], :, recent_start[slot] :] = torch.inf
    step = step_inputs(device, score_rows, score_index, recent_start, num_pillars)
    found = select(scores.to(device), step, max_budget=41).tolist()
    for layer in range(num_layers):
        for slot, count in enumerate(num_pillars):
            for head in range(num_kv_heads):
                row = scores[layer, score_index[slot], head].tolist()
                chosen = best(row, recent_start[slot], count) if score_rows[slot] else []
                assert found[layer][slot][head] == chosen + [UNTOUCHED] * (41 - len(chosen))


@pytest.mark.parametrize("device", DEVICES)
def test_worked_by_hand(device: str) -> None:
    """Of 0.3, 0.1, 0.3, 0.5 and 0.3 before position 5, the three best are 3, then the lower two of the equal ones."""
    scores = torch.tensor([0.3, 0.1, 0.3, 0.5, 0.3, 0.9], device=device).reshape(1, 1, 1, 6)
    pillars = select(scores, step_inputs(device, [1], [0], [5], [3]), max_budget=4)
    assert pillars.flatten().tolist() == [0, 2, 3, UNTOUCHED]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1000, 9000])
def test_long_context_of_equal_scores(device: str, length: int) -> None:
    """A sort that is not stable shows only in long rows."""
    scores = torch.zeros(2, 1, 2, length, device=device)
    scores[1, 0, 1, -10:-5] = 1.0
    pillars = select(scores, step_inputs(device, [9], [0], [length - 5], [64]), max_budget=64).tolist()
    assert pillars[0] == [[list(range(64))] * 2]
    assert pillars[1][0] == [list(range(64)), [*range(59), *range(length - 10, length - 5)]]
