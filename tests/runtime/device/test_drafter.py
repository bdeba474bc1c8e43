from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import ScorePlanes
from sparsespec.plugins.pillar_select.inputs import SelectInputs
from sparsespec.plugins.pillar_select.reference import pillar_select
from sparsespec.runtime.config import DrafterName, SpeculationConfig
from sparsespec.runtime.device.drafter import VerifiedBlocks, commit, make_drafter
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.slot_state import SlotState
from sparsespec.runtime.device.step_batch import StepMemory, make_batch
from sparsespec.runtime.device.torch_executor import make_memory
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduled_step import ScheduledRows, ScheduledStep
from tiny_models import tiny_model_config

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
UNTOUCHED = -7
GREEDY = SamplingParams(temperature=0.0).needs
PAPER = SpeculationConfig(k=3, ratio=0.1, min_budget=8, recent_share=0.0, moving_share=0.0, max_lookups=0)


def memory_of(config: SpeculationConfig, device: str = "cpu", max_budget: int = 32) -> StepMemory:
    """Three slots."""
    build = BuildConfig(
        max_batch_size=3, max_seq_len=400, max_num_tokens=64, max_draft_len=8, max_budget=max_budget, dtype="float32"
    )
    engine = EngineConfig(tiny_model_config(), build)
    memory = make_memory(engine, make_drafter(config), ExecutorConfig(3, num_pages=8), torch.device(device))
    state = memory.state
    for tensor in (state.kv_len, state.recent_start, state.num_staying, state.num_moving, state.lookup_budget):
        tensor.fill_(UNTOUCHED)
    for tensor in (state.pillars, state.lookups, state.num_lookups, state.num_drafts):
        tensor.fill_(UNTOUCHED)
    return memory


def committed(
    config: SpeculationConfig, kv_len: list[int], block_start: list[int], device: str = "cpu"
) -> list[list[int]]:
    """kv_len, recent_start, num_staying, num_moving and lookup_budget of slots 2, 0 and 1, as many as are given."""
    memory = memory_of(config, device)
    state = memory.state
    slots = torch.tensor([2, 0, 1][: len(kv_len)], device=device)
    lengths, starts = torch.tensor(kv_len, device=device), torch.tensor(block_start, device=device)
    split = make_drafter(config).split(memory.budget[lengths])
    commit(state, VerifiedBlocks(slots, starts, lengths), split)
    touched = (state.kv_len, state.recent_start, state.num_staying, state.num_moving, state.lookup_budget)
    assert all((tensor == UNTOUCHED).sum() == 3 - len(kv_len) for tensor in touched)
    return [tensor[slots].tolist() for tensor in touched]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("recent_share", "moving_share", "max_lookups", "expected"),
    [
        # A tenth of 205 tokens is 20; the block began at 200.
        (0.0, 0.0, 0, (200, 20, 0, 0)),
        (0.5, 0.0, 0, (190, 10, 0, 0)),
        (0.49, 0.0, 0, (191, 11, 0, 0)),  # 9.8 recent tokens: 9, and the budget's rest are pillars
        (1.0, 0.0, 0, (180, 0, 0, 0)),
        (0.25, 0.49, 0, (195, 6, 9, 0)),
        (0.25, 0.0, 4, (195, 11, 0, 4)),
        (0.25, 0.25, 4, (195, 6, 5, 4)),
        (0.25, 0.25, 30, (195, 0, 5, 10)),  # what lookups leave
        (0.75, 0.5, 4, (185, 0, 5, 0)),  # what recent tokens leave, then what moving pillars leave
        (0.0, 1.0, 4, (200, 0, 20, 0)),
    ],
)
def test_budget_is_split(
    recent_share: float, moving_share: float, max_lookups: int, expected: tuple[int, ...], device: str
) -> None:
    config = replace(PAPER, recent_share=recent_share, moving_share=moving_share, max_lookups=max_lookups)
    assert committed(config, [205], [200], device) == [[205], *([number] for number in expected)]


@pytest.mark.parametrize(
    ("kv_len", "budget"),
    [(9, 8), (80, 8), (89, 8), (90, 9), (320, 32)],
)
def test_budget_grows_with_the_context(kv_len: int, budget: int) -> None:
    """The larger of min_budget and the share of the new length, rounded down; the block was one token."""
    assert committed(PAPER, [kv_len], [kv_len - 1])[:3] == [[kv_len], [kv_len - 1], [min(budget, kv_len - 1)]]


@pytest.mark.parametrize(
    ("block_start", "recent_start", "num_staying"),
    [
        (0, 0, 0),  # a prompt no longer than a block: no candidates
        (3, 0, 0),  # the recent share reaches the beginning
        (4, 0, 0),
        (5, 1, 1),  # fewer candidates than the budget allows
        (8, 4, 4),
        (9, 5, 4),
    ],
)
def test_budget_over_the_context(block_start: int, recent_start: int, num_staying: int) -> None:
    config = replace(PAPER, ratio=0.05, recent_share=0.5)
    assert committed(config, [block_start + 2], [block_start])[:3] == [[block_start + 2], [recent_start], [num_staying]]


def test_slots_are_independent() -> None:
    config = replace(PAPER, recent_share=0.5, moving_share=0.25, max_lookups=2)
    assert committed(config, [205, 12], [200, 6]) == [[205, 12], [190, 2], [3, 0], [5, 2], [2, 2]]


@settings(max_examples=200, deadline=None)
@given(
    drafter=st.sampled_from(["pillar", "window", "oracle"]),
    budget=st.integers(1, 32),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    counts=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    block=st.tuples(st.integers(0, 80), st.integers(1, 9)),
)
def test_no_way_of_reading_exceeds_the_budget(
    drafter: DrafterName,
    budget: int,
    shares: tuple[float, float],
    counts: tuple[int, int],
    block: tuple[int, int],
) -> None:
    """All four together, of what lies before the block; there is no more to choose than there are tokens."""
    config = SpeculationConfig(
        drafter=drafter,
        ratio=0.01,
        min_budget=budget,
        recent_share=shares[0],
        moving_share=shares[1],
        max_lookups=counts[0],
        num_sinks=counts[1],
    )
    start = block[0]
    (_,), (recent_start,), (pillars,), (moving,), (lookups,) = committed(config, [start + block[1]], [start])
    assert 0 <= recent_start <= start
    assert all(0 <= number <= recent_start for number in (pillars, moving, lookups))
    assert pillars + moving + lookups + start - recent_start <= budget
    assert lookups <= config.max_lookups
    if start >= 2 * budget:  # then nothing of the budget is left over
        assert pillars + moving + lookups + start - recent_start == budget


@pytest.mark.parametrize(
    ("num_sinks", "block_start", "recent_start", "num_staying"),
    [
        (4, 200, 184, 4),  # 20 tokens: 4 sinks, 16 before the block
        (0, 200, 180, 0),
        (30, 200, 200, 20),  # no window is left beside the sinks
        (4, 18, 2, 2),  # the window meets the sinks
        (4, 10, 0, 0),
    ],
)
def test_window_follows_the_sinks(num_sinks: int, block_start: int, recent_start: int, num_staying: int) -> None:
    config = SpeculationConfig(drafter="window", ratio=0.1, min_budget=20, num_sinks=num_sinks)
    expected = [[block_start + 3], [recent_start], [num_staying], [0], [0]]
    assert committed(config, [block_start + 3], [block_start]) == expected


def plan(config: SpeculationConfig, memory: StepMemory, rows: tuple[ScheduledRows, ...]) -> None:
    drafter = make_drafter(config)
    batch = make_batch(memory, ScheduledStep(0, (), (), rows), drafter.needs.score_planes != "none")
    drafter.plan(memory, batch, pillar_select)


def verify(slot: int, num_rows: int, scored: bool = True) -> ScheduledRows:
    return ScheduledRows(slot, 0, Phase.VERIFY, num_rows, 0, num_rows, num_rows, scored=scored, needs=GREEDY)


def prompt_end(slot: int, num_rows: int, block_rows: int) -> ScheduledRows:
    return ScheduledRows(slot, 0, Phase.PREFILL, num_rows, 0, 1, block_rows, scored=True, needs=GREEDY)


def set_lengths(
    state: SlotState, kv_len: list[int], recent_start: list[int], num_staying: list[int], num_moving: list[int]
) -> None:
    state.kv_len.copy_(torch.tensor(kv_len))
    state.recent_start.copy_(torch.tensor(recent_start))
    state.num_staying.copy_(torch.tensor(num_staying))
    state.num_moving.copy_(torch.tensor(num_moving))


def test_pillar_drafter_takes_the_best_before_recent_start() -> None:
    """Scores come in the order of scored blocks: slot 0's first, then slot 2's; the plain request's has none."""
    memory = memory_of(PAPER)
    state = memory.state
    set_lengths(state, [9, 9, 12], [4, 4, 6], [1, 2, 2], [0, 0, 0])
    memory.scores[1, 0, 0, 1, 3] = 1.0  # slot 0
    memory.scores[0, 1, 0, 0, [5, 1, 7]] = torch.tensor([0.2, 0.1, 0.9])  # slot 2: position 7 is recent
    plan(PAPER, memory, (verify(0, 4), verify(1, 1, scored=False), verify(2, 4)))
    assert state.pillars[:, 2, :, :3].tolist() == [
        [[1, 5, UNTOUCHED], [0, 1, UNTOUCHED]],
        [[0, 1, UNTOUCHED], [0, 1, UNTOUCHED]],
    ]
    assert state.pillars[:, 0, :, :2].tolist() == [[[0, UNTOUCHED]] * 2, [[0, UNTOUCHED], [3, UNTOUCHED]]]
    assert (state.pillars[:, 1] == UNTOUCHED).all()


def test_the_shipped_rule_hands_the_scores_over_as_they_are() -> None:
    """All planes, and whose the first of them are; the plain request's slot is not among the scored ones."""
    config = replace(PAPER, moving_share=0.5)
    memory = memory_of(config)
    memory.state.kv_len.copy_(torch.tensor([20, 9, 10]))
    drafter, selected = make_drafter(config), list[SelectInputs[Tensor]]()
    rows = (verify(0, 4), verify(1, 1, scored=False), prompt_end(2, num_rows=5, block_rows=2))
    batch = make_batch(memory, ScheduledStep(0, (), (), rows), scored=True)
    memory.state.kv_len.copy_(torch.tensor([23, 10, 15]))  # the commit: three rows of slot 0 stand
    drafter.plan(memory, batch, selected.append)
    assert selected[0].scores is memory.scores
    assert selected[0].scored_slot.tolist() == [0, 2]
    assert selected[0].moving_shift.tolist() == [3, 2]
    assert selected[0].scored_slot.dtype == selected[0].moving_shift.dtype == torch.int32


def test_moving_pillars_start_after_the_last_row_that_stands() -> None:
    """Four rows from position 20 on, of which three stand; and a prompt's last two rows, both of which do."""
    config = replace(PAPER, moving_share=0.5, moving_from="last")
    memory = memory_of(config)
    state = memory.state
    set_lengths(state, [20, 0, 10], [18, 0, 10], [1, 0, 1], [1, 0, 1])
    memory.scores[:, 0, 2, :, 11] = 1.0
    memory.scores[:, 0, 3, :, 14] = 2.0  # a rejected row: counts for the mean
    memory.scores[:, 1, 1, :, 4] = 1.0
    memory.scores[:, 1, 2, :, 7] = 9.0  # an older block's
    drafter = make_drafter(config)
    rows = (verify(0, 4), prompt_end(2, num_rows=5, block_rows=2))
    batch = make_batch(memory, ScheduledStep(0, (), (), rows), scored=True)
    state.kv_len.copy_(torch.tensor([23, 0, 15]))  # the commit
    drafter.plan(memory, batch, pillar_select)
    assert state.pillars[:, 0, :, :3].tolist() == [[[14, 12, UNTOUCHED]] * 2] * 2
    assert state.pillars[:, 2, :, :3].tolist() == [[[4, 5, UNTOUCHED]] * 2] * 2


def test_an_average_starts_afresh_with_a_prompt() -> None:
    """Slot 1's past is its own; slot 0's is a former owner's."""
    config = replace(PAPER, ranking="average", decay=0.5)
    memory = memory_of(config)
    state = memory.state
    set_lengths(state, [6, 20, 0], [8, 18, 0], [1, 1, 0], [0, 0, 0])
    state.score_history[:, :2, :, 3] = 1.0
    memory.scores[:, :2, :, :, 5] = 0.9
    batch = make_batch(memory, ScheduledStep(0, (), (), (prompt_end(0, 4, 4), verify(1, 4))), scored=True)
    state.kv_len.copy_(torch.tensor([10, 22, 0]))
    make_drafter(config).plan(memory, batch, pillar_select)
    assert state.pillars[:, :2, :, 0].tolist() == [[[5, 5], [3, 3]]] * 2


@pytest.mark.parametrize(("drafter", "ranking"), [("pillar", "mean"), ("window", "average"), ("none", "average")])
def test_no_memory_for_an_average_that_nobody_keeps(drafter: DrafterName, ranking: str) -> None:
    config = SpeculationConfig(drafter=drafter, ranking=ranking, min_budget=8)  # type: ignore[arg-type]
    assert memory_of(config).state.score_history.numel() == 0


@pytest.mark.parametrize("num_sinks", [0, 4, 64, 80])
def test_window_drafter_takes_the_sinks(num_sinks: int) -> None:
    config = SpeculationConfig(drafter="window", num_sinks=num_sinks)
    memory = memory_of(config, max_budget=64)
    memory.state.kv_len.fill_(9)
    plan(config, memory, (verify(0, 3), verify(2, 3)))
    kept = min(num_sinks, 64)
    expected = [*range(kept), *[UNTOUCHED] * (64 - kept)]
    assert memory.state.pillars[:, [0, 2]].tolist() == [[[expected] * 2] * 2] * 2
    assert (memory.state.pillars[:, 1] == UNTOUCHED).all()


def test_ngram_drafts() -> None:
    """Written behind each text and certain; a text without a repetition has none, and other slots stay as they are."""
    config = SpeculationConfig(drafter="ngram", k=3, max_ngram=2, min_ngram=1)
    memory = memory_of(config)
    state = memory.state
    state.kv_len.copy_(torch.tensor([4, 2, 3]))
    state.draft_probs.fill_(0.25)
    state.token_ids[0, :5] = torch.tensor([7, 8, 9, 7, 8])
    state.token_ids[2, :9] = torch.tensor([7, 8, 9, 6, 5, 5, 5, 5, 5])  # known up to 6
    plan(config, memory, (verify(0, 4), verify(2, 4)))
    assert state.token_ids[0, 5:8].tolist() == [9, 7, 8]
    assert state.num_drafts.tolist() == [3, UNTOUCHED, 0]
    assert state.draft_probs[0].argmax(dim=1).tolist() == [9, 7, 8]
    assert state.draft_probs[0].sum(dim=1).tolist() == state.draft_probs[0].amax(dim=1).tolist() == [1.0] * 3
    assert (state.draft_probs[1] == 0.25).all()
    assert state.token_ids[2, :4].tolist() == [7, 8, 9, 6]


@pytest.mark.parametrize(
    ("config", "planes"),
    [
        (PAPER, "mean"),
        (replace(PAPER, moving_share=0.1, moving_from="diagonal"), "diagonal"),
        (replace(PAPER, moving_share=0.1, moving_from="last"), "rows"),
        (SpeculationConfig(drafter="window"), "none"),
        (SpeculationConfig(drafter="oracle"), "none"),
        (SpeculationConfig(drafter="ngram"), "none"),
        (SpeculationConfig(drafter="none"), "none"),
    ],
)
def test_only_pillars_need_scores(config: SpeculationConfig, planes: ScorePlanes) -> None:
    assert make_drafter(config).needs.score_planes == planes
