"""Prompt lookup on the device, against the same rule in plain Python and against examples worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from sparsespec.runtime.device.ngram import NgramDrafts, NgramRule, propose


def occurrence(text: list[int], rule: NgramRule) -> int | None:
    """Where what followed the newest longest occurrence of the last tokens begins, None without one."""
    for n in range(rule.max_ngram, rule.min_ngram - 1, -1):
        for start in range(len(text) - n - 1, -1, -1):
            if text[start : start + n] == text[-n:]:
                return start + n
    return None


def expected_drafts(text: list[int], rule: NgramRule) -> list[int]:
    """Append what follows, one token at a time; what follows the end is what was appended."""
    start = occurrence(text, rule)
    if start is None:
        return []
    longer = list(text)
    for index in range(rule.k):
        longer.append(longer[start + index])
    return longer[len(text) :]


def run(texts: list[list[int]], rule: NgramRule, room: int = 0, garbage: int = 0) -> NgramDrafts:
    """One row per text, as wide as the longest and `room` more; garbage lies past every end."""
    width = max(1, *(len(text) for text in texts)) + room
    token_ids = torch.tensor([text + [garbage] * (width - len(text)) for text in texts])
    return propose(token_ids, torch.tensor([len(text) for text in texts]), rule)


def drafts_of(text: str, rule: NgramRule) -> str:
    drafts = run([[ord(letter) for letter in text]], rule, room=3, garbage=ord(text[-1]))
    return "".join(chr(token) for token in drafts.tokens[0, : int(drafts.num_drafts[0])].tolist())


rules = st.builds(
    lambda k, low, more: NgramRule(k, max_ngram=low + more, min_ngram=low),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(0, 3),
)
texts = st.integers(1, 4).flatmap(
    lambda size: st.lists(st.lists(st.integers(0, size - 1), max_size=40), min_size=1, max_size=5)
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(texts, rules, st.integers(0, 9), st.integers(0, 4))
def test_drafts_are_those_of_the_rule_in_plain_python(
    texts: list[list[int]], rule: NgramRule, room: int, garbage: int
) -> None:
    drafts = run(texts, rule, room, garbage)
    expected = [expected_drafts(text, rule) for text in texts]
    event(f"matched: {any(expected)}")
    assert drafts.num_drafts.tolist() == [len(tokens) for tokens in expected]
    assert drafts.tokens.tolist() == [tokens or [0] * rule.k for tokens in expected]


@pytest.mark.parametrize(
    ("text", "rule", "drafts"),
    [
        ("the cat sat on the c", NgramRule(4, 3, 1), "at s"),
        ("abcabc", NgramRule(3, 3, 1), "abc"),
        ("abcabc", NgramRule(8, 3, 1), "abcabcab"),  # past the end it goes on with its own beginning
        ("xaa", NgramRule(5, 3, 1), "aaaaa"),  # the match overlaps the last tokens
        ("ab1ab2ab", NgramRule(1, 2, 1), "2"),  # the most recent of equally long matches
        ("abc1bc2abc", NgramRule(1, 3, 1), "1"),  # an older match that is longer
        ("abc1bc2abc", NgramRule(1, 2, 1), "2"),  # which at most two tokens cannot tell
        ("dabc1abc2dabc", NgramRule(2, 4, 1), "1a"),
        ("abcdc", NgramRule(2, 3, 1), "dc"),
        ("abcdc", NgramRule(2, 3, 2), ""),  # one token is too short a match
        ("abcd", NgramRule(2, 3, 1), ""),
        ("aba", NgramRule(2, 3, 1), "ba"),
        ("aa", NgramRule(2, 3, 1), "aa"),
        ("aa", NgramRule(2, 3, 2), ""),  # two tokens do not occur twice in two
        ("a", NgramRule(2, 3, 1), ""),
    ],
)
def test_examples(text: str, rule: NgramRule, drafts: str) -> None:
    assert drafts_of(text, rule) == drafts


def test_a_request_with_no_tokens_gets_no_drafts() -> None:
    """Slots hold nothing at all before their first request."""
    drafts = run([[], [7, 7]], NgramRule(2, 3, 1), room=4)
    assert (drafts.num_drafts.tolist(), drafts.tokens.tolist()) == ([0, 2], [[0, 0], [7, 7]])


def test_a_step_without_blocks_proposes_nothing() -> None:
    drafts = propose(torch.zeros(0, 9, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), NgramRule(3, 2, 1))
    assert (drafts.tokens.shape, drafts.num_drafts.shape) == ((0, 3), (0,))


def test_the_host_reads_no_value_of_the_device() -> None:
    """A meta tensor has none: every operation whose result's shape or flow depends on a value raises."""
    token_ids = torch.zeros(5, 30, dtype=torch.int64, device="meta")
    drafts = propose(token_ids, torch.zeros(5, dtype=torch.int64, device="meta"), NgramRule(4, 3, 1))
    assert (drafts.tokens.shape, drafts.num_drafts.shape) == ((5, 4), (5,))
    assert drafts.tokens.device == drafts.num_drafts.device == token_ids.device
    assert drafts.tokens.dtype == drafts.num_drafts.dtype == torch.int64


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for() -> None:
    texts = torch.tensor([[1, 2, 3, 1, 2, 0], [1, 2, 3, 4, 0, 0]])
    length = torch.tensor([5, 4])
    arguments = texts.cuda(), length.cuda(), NgramRule(4, 3, 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        drafts = propose(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (drafts.tokens.tolist(), drafts.num_drafts.tolist()) == ([[3, 1, 2, 3], [0, 0, 0, 0]], [4, 0])
