"""Lookups on the device, against the same rule in plain Python, and as a drafter uses them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.runtime.config import DrafterName, SpeculationConfig
from sparsespec.runtime.device.drafter import make_drafter
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.lookup import find_lookups
from sparsespec.runtime.device.slot_state import SlotState
from sparsespec.runtime.device.step_batch import DraftRows
from sparsespec.runtime.device.torch_executor import make_memory
from sparsespec.runtime.sampling_params import SamplingParams
from tiny_models import tiny_model_config

UNTOUCHED = -7


def match_length(text: list[int], end: int) -> int:
    """How many of the newest tokens, 4 at most, also stand right before position `end`."""
    return max(n for n in range(5) if n <= end and text[end - n : end] == text[len(text) - n :])


def expected_lookups(text: list[int], before: int, count: int) -> list[int]:
    """Positions after earlier occurrences of the last token: longest matches first, then the most recent."""
    found = [p for p in range(1, min(before, len(text))) if match_length(text, p)]
    return sorted(found, key=lambda position: (-match_length(text, position), -position))[:count]


def run(texts: list[list[int]], before: list[int], count: int, room: int = 0, garbage: int = 0) -> list[list[int]]:
    """Positions of each text, ascending; one row per text, `room` wider than the longest, garbage past every end."""
    width = max(map(len, texts)) + room
    token_ids = torch.tensor([text + [garbage] * (width - len(text)) for text in texts])
    length = torch.tensor([len(text) for text in texts])
    found, number = find_lookups(token_ids, length, torch.tensor(before, dtype=torch.int32), count)
    assert found.shape == (len(texts), count)
    assert found.dtype == number.dtype == torch.int32
    return [sorted(row[:n]) for row, n in zip(found.tolist(), number.tolist(), strict=True)]


@st.composite
def texts_and_limits(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    token = st.integers(0, draw(st.integers(0, 3)))
    texts = draw(st.lists(st.lists(token, min_size=1, max_size=40), min_size=1, max_size=5))
    return texts, [draw(st.sampled_from([0, len(text)]) | st.integers(0, len(text))) for text in texts]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(texts_and_limits(), st.integers(0, 9) | st.just(60), st.integers(0, 9), st.integers(0, 4))
def test_lookups_are_those_of_the_rule_in_plain_python(
    given: tuple[list[list[int]], list[int]], count: int, room: int, garbage: int
) -> None:
    texts, before = given
    expected = [sorted(expected_lookups(*part, count)) for part in zip(texts, before, strict=True)]
    event(f"fewer than asked for: {any(len(part) < count for part in expected)}")
    assert run(texts, before, count, room, garbage) == expected


@pytest.mark.parametrize(
    ("text", "before", "count", "positions"),
    [
        ("abcab", 5, 9, [2]),
        ("abab", 4, 9, [2]),  # not the position after the last token itself
        ("a1a2a3a", 7, 2, [3, 5]),  # the most recent of equal matches
        ("xa1a2a3xa", 9, 1, [2]),  # the oldest, after two tokens that match
        ("a1a2a3a", 5, 9, [1, 3]),  # position 5 is read anyway
        ("yabcd1zbcd2xabcd", 16, 2, [5, 10]),
        ("9abcd18abcd29abcd", 17, 1, [11]),  # four tokens are as good as five: then the most recent
        ("abcd", 4, 9, []),
    ],
)
def test_examples(text: str, before: int, count: int, positions: list[int]) -> None:
    assert run([[ord(letter) for letter in text]], [before], count, room=2, garbage=ord(text[-1])) == [positions]


def test_more_than_there_are_positions() -> None:
    assert run([[5, 5, 5]], [3], count=8) == [[1, 2]]


def test_the_host_reads_no_value_of_the_device() -> None:
    """A meta tensor has none: every operation whose result's shape or flow depends on a value raises."""
    token_ids = torch.zeros(5, 30, dtype=torch.int64, device="meta")
    numbers = torch.zeros(5, dtype=torch.int64, device="meta")
    found, number = find_lookups(token_ids, numbers, numbers.int(), 4)
    assert (found.shape, number.shape) == ((5, 4), (5,))
    assert found.device == number.device == token_ids.device


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for() -> None:
    token_ids = torch.tensor([[1, 2, 1, 2, 0], [1, 2, 3, 4, 4]]).cuda()
    numbers = torch.tensor([4, 4]).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found, number = find_lookups(token_ids, numbers, numbers, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (found[0, 0].item(), number.tolist()) == (2, [1, 0])


def state_of(config: SpeculationConfig, max_seq_len: int) -> SlotState:
    """Three slots that have verified 9 tokens each; the last token known, after them, is also at 0, 2 and 4."""
    build = BuildConfig(
        max_batch_size=3, max_seq_len=max_seq_len, max_num_tokens=16, max_draft_len=2, max_budget=8, dtype="float32"
    )
    engine, sizes = EngineConfig(tiny_model_config(), build), ExecutorConfig(max_batch_size=3, num_pages=4)
    state = make_memory(engine, make_drafter(config), sizes, torch.device("cpu")).state
    state.kv_len.fill_(9)
    state.token_ids[:, :11] = torch.tensor([5, 6, 5, 7, 5, 6, 8, 8, 4, 5, 6])
    for tensor in (state.lookups, state.num_lookups):
        tensor.fill_(UNTOUCHED)
    return state


def draft_rows(slots: list[int], draft_index: list[int]) -> DraftRows:
    return DraftRows(
        needs=(SamplingParams(temperature=0.0).needs,) * len(slots),
        slot=torch.tensor(slots, dtype=torch.int64),
        draft_index=torch.tensor(draft_index, dtype=torch.int64),
        logit=torch.arange(len(slots)),
    )


def test_lookups_follow_each_draft() -> None:
    """Of the row's own token, before recent_start, and no more than the budget has room for."""
    config = SpeculationConfig(k=2, max_lookups=3)
    state = state_of(config, max_seq_len=40)
    state.recent_start.copy_(torch.tensor([5, 9, 9]))
    state.lookup_budget.copy_(torch.tensor([3, 3, 1]))
    make_drafter(config).look_up(state, draft_rows([2, 0], [1, 0]))
    assert state.num_lookups.tolist() == [2, UNTOUCHED, 1]
    assert sorted(state.lookups[0, :2].tolist()) == [1, 3]  # after the 5s; position 5 is read anyway
    assert state.lookups[2, 0] == 6  # after the newer of two "56", the row's own and the draft before it
    assert (state.lookups[1] == UNTOUCHED).all()


def test_more_lookups_than_there_are_positions() -> None:
    config = SpeculationConfig(k=2, max_lookups=100)
    state = state_of(config, max_seq_len=16)
    state.recent_start.fill_(9)
    state.lookup_budget.fill_(9)
    make_drafter(config).look_up(state, draft_rows([0], [0]))
    assert sorted(state.lookups[0, : int(state.num_lookups[0])].tolist()) == [1, 3, 5]


@pytest.mark.parametrize("drafter", ["pillar", "window", "oracle", "ngram"])
def test_nothing_is_looked_up_unless_asked_for(drafter: DrafterName) -> None:
    config = SpeculationConfig(drafter=drafter, k=2, max_lookups=0 if drafter == "pillar" else 3)
    state = state_of(config, max_seq_len=40)
    make_drafter(config).look_up(state, draft_rows([1], [0]))
    assert (state.num_lookups == UNTOUCHED).all()
