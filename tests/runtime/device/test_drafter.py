from __future__ import annotations

import pytest
import torch

from sparsespec.builder.build_config import BuildConfig
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import StepInputs
from sparsespec.runtime.config import DrafterName, SpeculationConfig
from sparsespec.runtime.device.drafter import commit, make_drafter
from sparsespec.runtime.device.slot_state import SlotLimits, SlotState, make_slot_state
from tiny_models import tiny_model_config

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
UNTOUCHED = -7


def state_of(device: str = "cpu", max_budget: int = 32) -> SlotState:
    build = BuildConfig(max_batch_size=3, max_num_tokens=64, max_draft_len=8, max_budget=max_budget, dtype="float32")
    state = make_slot_state(tiny_model_config(), build, SlotLimits(3, 8), torch.device(device))
    for tensor in (state.kv_len, state.recent_start, state.num_pillars, state.pillars):
        tensor.fill_(UNTOUCHED)
    return state


def committed(
    config: SpeculationConfig, kv_len: list[int], block_start: list[int], device: str = "cpu"
) -> tuple[list[int], list[int], list[int]]:
    """kv_len, recent_start and num_pillars of slots 2, 0 and 1, as many as are given, after a commit."""
    state = state_of(device)
    slots = torch.tensor([2, 0, 1][: len(kv_len)], device=device)
    lengths, starts = torch.tensor(kv_len, device=device), torch.tensor(block_start, device=device)
    commit(state, slots, lengths, starts, config, make_drafter(config))
    touched = [tensor[slots].tolist() for tensor in (state.kv_len, state.recent_start, state.num_pillars)]
    assert (state.kv_len == UNTOUCHED).sum() == 3 - len(kv_len)
    return touched[0], touched[1], touched[2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("share", "recent_start", "num_pillars"),
    [
        # A tenth of 205 tokens is 20; the block began at 200.
        (0.0, 200, 20),
        (0.5, 190, 10),
        (0.49, 191, 11),  # 9.8 recent tokens: 9, and the budget's rest are pillars
        (1.0, 180, 0),
    ],
)
def test_budget_is_split_by_recent_share(share: float, recent_start: int, num_pillars: int, device: str) -> None:
    config = SpeculationConfig(ratio=0.1, min_budget=8, recent_share=share)
    assert committed(config, [205], [200], device) == ([205], [recent_start], [num_pillars])


@pytest.mark.parametrize(
    ("kv_len", "budget"),
    [(9, 8), (80, 8), (89, 8), (90, 9), (320, 32)],
)
def test_budget_grows_with_the_context(kv_len: int, budget: int) -> None:
    """The larger of min_budget and the share of the new length, rounded down; the block was one token."""
    config = SpeculationConfig(ratio=0.1, min_budget=8, recent_share=0.0)
    assert committed(config, [kv_len], [kv_len - 1]) == ([kv_len], [kv_len - 1], [min(budget, kv_len - 1)])


@pytest.mark.parametrize(
    ("block_start", "recent_start", "num_pillars"),
    [
        (0, 0, 0),  # a prompt no longer than a block: no candidates
        (3, 0, 0),  # the recent share reaches the beginning
        (4, 0, 0),
        (5, 1, 1),  # fewer candidates than the budget allows
        (8, 4, 4),
        (9, 5, 4),
    ],
)
def test_budget_over_the_context(block_start: int, recent_start: int, num_pillars: int) -> None:
    config = SpeculationConfig(ratio=0.05, min_budget=8, recent_share=0.5)
    assert committed(config, [block_start + 2], [block_start]) == ([block_start + 2], [recent_start], [num_pillars])


def test_slots_are_independent() -> None:
    config = SpeculationConfig(ratio=0.1, min_budget=8, recent_share=0.5)
    assert committed(config, [205, 12], [200, 8]) == ([205, 12], [190, 4], [10, 4])


@pytest.mark.parametrize(
    ("num_sinks", "block_start", "recent_start", "num_pillars"),
    [
        (4, 200, 184, 4),  # 20 tokens: 4 sinks, 16 before the block
        (0, 200, 180, 0),
        (30, 200, 200, 20),  # no window is left beside the sinks
        (4, 18, 2, 2),  # the window meets the sinks
        (4, 10, 0, 0),
    ],
)
def test_window_follows_the_sinks(num_sinks: int, block_start: int, recent_start: int, num_pillars: int) -> None:
    config = SpeculationConfig(drafter="window", ratio=0.1, min_budget=20, num_sinks=num_sinks)
    assert committed(config, [block_start + 3], [block_start]) == ([block_start + 3], [recent_start], [num_pillars])


def select(config: SpeculationConfig, state: SlotState, scores: torch.Tensor, score_rows: list[int]) -> None:
    """Select for slots 0 and 2, of which score_rows says which were scored; slot 2's scores come first."""
    ints = torch.zeros(3, dtype=torch.int32)
    step = StepInputs(
        row_start=torch.zeros(4, dtype=torch.int32),
        phase=ints + Phase.VERIFY,
        draft_index=ints,
        score_rows=torch.tensor(score_rows, dtype=torch.int32),
        score_index=torch.tensor([1, 0, 0], dtype=torch.int32),
        kv_len=state.kv_len,
        recent_start=state.recent_start,
        num_pillars=state.num_pillars,
        page_table=state.page_table,
        rope_table=torch.zeros(1, 2),
    )
    make_drafter(config).select(state, scores, step, torch.tensor([0, 2]))


def test_pillar_drafter_takes_the_best_before_recent_start() -> None:
    config, state = SpeculationConfig(), state_of()
    state.recent_start.copy_(torch.tensor([4, UNTOUCHED, 6]))
    state.num_pillars.copy_(torch.tensor([1, UNTOUCHED, 2]))
    scores = torch.zeros(2, 3, 2, 8)
    scores[0, 0, 0, [5, 1, 7]] = torch.tensor([0.2, 0.1, 0.9])  # slot 2: position 7 is recent
    scores[1, 1, 1, 3] = 1.0  # slot 0
    select(config, state, scores, [9, 0, 9])
    assert state.pillars[:, 2, :, :3].tolist() == [
        [[1, 5, UNTOUCHED], [0, 1, UNTOUCHED]],
        [[0, 1, UNTOUCHED], [0, 1, UNTOUCHED]],
    ]
    assert state.pillars[:, 0, :, :2].tolist() == [[[0, UNTOUCHED]] * 2, [[0, UNTOUCHED], [3, UNTOUCHED]]]
    assert (state.pillars[:, 1] == UNTOUCHED).all()


@pytest.mark.parametrize(("num_sinks", "max_budget"), [(0, 32), (4, 32), (40, 32)])
def test_window_drafter_takes_the_sinks(num_sinks: int, max_budget: int) -> None:
    state = state_of(max_budget=max_budget)
    config = SpeculationConfig(drafter="window", num_sinks=num_sinks)
    select(config, state, torch.full((2, 3, 2, 8), torch.nan), [0, 0, 0])
    kept = min(num_sinks, max_budget)
    expected = [*range(kept), *[UNTOUCHED] * (max_budget - kept)]
    assert state.pillars[:, [0, 2]].tolist() == [[[expected] * 2] * 2] * 2
    assert (state.pillars[:, 1] == UNTOUCHED).all()


@pytest.mark.parametrize(("drafter", "scored"), [("pillar", True), ("window", False), ("none", False)])
def test_only_pillars_need_scores(drafter: DrafterName, scored: bool) -> None:
    assert make_drafter(SpeculationConfig(drafter=drafter)).scored is scored
