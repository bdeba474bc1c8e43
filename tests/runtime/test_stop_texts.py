from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespec.runtime.stop_texts import StopTexts

TEXTS = st.text("ab", min_size=1, max_size=6)


def longest_beginning(text: str, stop: tuple[str, ...]) -> int:
    """Of all proper beginnings of the stop texts, the longest that the text ends with."""
    beginnings = [one[:length] for one in stop for length in range(len(one))]
    return max(len(one) for one in beginnings if text.endswith(one))


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(TEXTS, min_size=1, max_size=4).map(tuple), st.lists(TEXTS, max_size=6))
def test_undecided_is_the_longest_beginning_at_the_end(stop: tuple[str, ...], pieces: list[str]) -> None:
    texts, whole = StopTexts(stop), ""
    for piece in pieces:
        texts.push(piece)
        whole += piece
        assert texts.undecided == longest_beginning(whole, stop)


def test_without_stop_texts_all_is_decided() -> None:
    texts = StopTexts(())
    texts.push("anything")
    assert (texts.undecided, texts.first_in("anything")) == (0, None)


def test_the_earliest_counts_and_of_two_the_shortest() -> None:
    assert StopTexts(("b", "ab", "a")).first_in("xab") == (1, "a")
    assert StopTexts(("c",)).first_in("xab") is None
