from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sparsespec.runtime.cli.repetition import NGRAM, ends_repeated_ngram, repetitive_verifications
from sparsespec.runtime.outputs import CompletionOutput
from sparsespec.runtime.verification import Verification


def block(first_output: int, num_tokens: int) -> Verification:
    return Verification(first_output, num_tokens, 8, num_tokens - 1, 0, 0, 0)


def answer(token_ids: tuple[int, ...], *blocks: Verification) -> CompletionOutput:
    return CompletionOutput(0, "", token_ids, (), "length", None, blocks)


def test_a_token_ends_a_repeated_ngram_from_its_second_occurrence_on() -> None:
    assert ends_repeated_ngram([1, 2, 3, 1, 2, 3, 1], n=3) == [False] * 5 + [True, True]


def test_occurrences_may_overlap() -> None:
    assert ends_repeated_ngram([5, 5, 5, 5], n=3) == [False, False, False, True]


def test_short_answers_repeat_nothing() -> None:
    assert ends_repeated_ngram([7] * NGRAM) == [False] * NGRAM
    assert ends_repeated_ngram([]) == []


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 4))
def test_agrees_with_a_search(token_ids: list[int], n: int) -> None:
    expected = [
        any(token_ids[j + 1 - n : j + 1] == token_ids[end + 1 - n : end + 1] for j in range(n - 1, end))
        for end in range(len(token_ids))
    ]
    assert ends_repeated_ngram(token_ids, n) == expected


def test_half_of_a_block_makes_it_repetitive() -> None:
    """Tokens 12..15 repeat 4..7, but only from the eighth repeated token on, 15, does an n-gram end."""
    tokens = (*range(8), *range(8), 20, 21)
    assert ends_repeated_ngram(tokens) == [False] * 15 + [True, False, False]
    found = repetitive_verifications(answer(tokens, block(0, 8), block(8, 6), block(14, 2), block(15, 3)))
    assert found == [False, False, True, False]


def test_a_stop_text_can_cut_the_last_block() -> None:
    tokens = (*range(8), *range(8))
    assert repetitive_verifications(answer(tokens, block(15, 5))) == [True]
