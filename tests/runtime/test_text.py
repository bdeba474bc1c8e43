"""Streamed text is the decoded answer, cut before the earliest stop text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespec.builder.errors import RequestError
from sparsespec.runtime.text import TextCodec
from tiny_models import SPECIAL_TOKENS, tiny_tokenizer

TOKENIZER = tiny_tokenizer(260)  # every byte
CODEC = TextCodec(TOKENIZER)
BYTE_TOKENS = {  # of the bytes of multi-byte characters
    byte: CODEC.encode(character)[i] for character in ("é", "€", "😀") for i, byte in enumerate(character.encode())
}


def streamed(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], str | None]:
    """What had been released after each token, up to the stop text found."""
    stream, seen = CODEC.stream(stop), []
    for token in CODEC.encode(text):
        found = stream.push(token, may_stop=True)
        seen.append(stream.text)
        if found is not None:
            return seen, found
    stream.flush()
    return [*seen, stream.text], None


def test_the_tokenizer_splits_characters_and_merges_letters() -> None:
    """What the tests below rely on."""
    assert [len(CODEC.encode(text)) for text in ("é", "€", "😀", "th", "ab")] == [2, 3, 4, 1, 2]


def test_a_character_appears_with_its_last_token() -> None:
    seen, _ = streamed("aé€😀")
    assert seen == ["a", "a", "aé", "aé", "aé", "aé€", "aé€", "aé€", "aé€", "aé€😀", "aé€😀"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.integers(0, 259), st.sampled_from(list(BYTE_TOKENS.values()))), max_size=16))
def test_streaming_any_tokens_ends_in_the_whole_text(token_ids: list[int]) -> None:
    """Broken characters and special tokens too; released text never changes."""
    stream, before = CODEC.stream(()), ""
    for token in token_ids:
        assert stream.push(token, may_stop=True) is None
        assert stream.text.startswith(before)
        before = stream.text
    stream.flush()
    assert stream.text.startswith(before)
    assert stream.text == TOKENIZER.decode(token_ids, skip_special_tokens=True)


def test_bytes_that_never_became_a_character_come_out_at_the_end() -> None:
    stream = CODEC.stream(())
    for token in (*CODEC.encode("a"), *CODEC.encode("€")[:2]):
        stream.push(token, may_stop=True)
    assert stream.text == "a"
    stream.flush()
    assert stream.text == "a\N{REPLACEMENT CHARACTER}"


def test_special_tokens_are_not_text() -> None:
    stream = CODEC.stream(())
    for token in (*CODEC.encode("a"), *CODEC.encode(SPECIAL_TOKENS[1]), *CODEC.encode("b")):
        stream.push(token, may_stop=True)
    assert stream.text == CODEC.decode(CODEC.encode("a<|user|>b")) == "ab"


@pytest.mark.parametrize(
    ("text", "stop", "expected", "found"),
    [
        ("abcdef", ("cd",), "ab", "cd"),  # across tokens
        ("with it", ("h",), "wit", "h"),  # within the token "th"
        ("wither", ("ith", "her"), "w", "ith"),
        ("a😀b", ("😀",), "a", "😀"),  # across the tokens of one character
        ("a€b", ("€b",), "a", "€b"),
        ("abab", ("abab",), "", "abab"),
        ("aaab", ("aab",), "a", "aab"),  # overlaps its own beginning
        ("one\n\ntwo", ("\n\n",), "one", "\n\n"),
        ("no stop", ("stops",), "no stop", None),
        ("abcabd", ("abd",), "abc", "abd"),
    ],
)
def test_stop_texts(text: str, stop: tuple[str, ...], expected: str, found: str | None) -> None:
    seen, stopped = streamed(text, stop)
    assert (seen[-1], stopped) == (expected, found)


def test_text_is_held_back_only_while_it_may_become_a_stop_text() -> None:
    seen, _ = streamed("xabyabc", ("abc",))
    assert seen == ["x", "x", "x", "xaby", "xaby", "xaby", "xaby"]
    seen, _ = streamed("xab", ("abc",))
    assert seen == ["x", "x", "x", "xab"]


def naive_cut(text: str, stop: tuple[str, ...]) -> tuple[str, str | None]:
    """Letter by letter: the first place where any stop text is complete, and the earliest that is."""
    for end in range(1, len(text) + 1):
        complete = [text[:end].find(one) for one in stop if one in text[:end]]
        if complete:
            start = min(complete)
            return text[:start], min(one for one in stop if text[:end].startswith(one, start))
    return text, None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.text("abé", max_size=14),
    st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3, unique=True).map(tuple),
)
def test_several_stop_texts_cut_where_the_first_is_complete(text: str, stop: tuple[str, ...]) -> None:
    seen, found = streamed(text, stop)
    expected, stopped = naive_cut(text, stop)
    assert (seen[-1], found) == (expected, stopped)
    assert all(expected.startswith(released) for released in seen)


def test_of_stop_texts_in_one_token_the_earliest_wins() -> None:
    assert streamed("path", ("h", "t")) == (["p", "pa", "pa"], "t")
    assert streamed("path", ("th", "t", "ath"))[1] == "ath"


def test_a_stop_text_before_min_tokens_is_text() -> None:
    stream = CODEC.stream(("ab",))
    for token in CODEC.encode("xaby"):
        assert stream.push(token, may_stop=False) is None
    assert stream.text == "xaby"
    found = [stream.push(token, may_stop=True) for token in CODEC.encode("zab")]
    assert (found, stream.text) == ([None, None, "ab"], "xabyz")


def test_encode_and_decode_are_inverse() -> None:
    text = "the naïve 😀 costs 5 €\n"
    assert CODEC.decode(CODEC.encode(text)) == text


def test_chat_goes_through_the_models_template() -> None:
    assert TOKENIZER.decode(CODEC.encode_chat("hi")) == "<|user|>hi<|eos|><|assistant|>"


def test_chat_without_a_template_is_an_error_that_says_what_to_do() -> None:
    plain = tiny_tokenizer(260)
    plain.chat_template = None
    with pytest.raises(RequestError, match=r"no chat template.*--no-chat_template"):
        TextCodec(plain).encode_chat("hi")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.text("abé€", max_size=20),
    st.lists(st.text("abé€", min_size=1, max_size=4), max_size=3, unique=True).map(tuple),
    st.integers(0, 12),
    st.lists(st.integers(1, 7), min_size=1, max_size=8),
)
def test_blocks_stop_where_their_tokens_stop(
    text: str, stop: tuple[str, ...], num_early: int, sizes: list[int]
) -> None:
    tokens = CODEC.encode(text)
    one_by_one, in_blocks = CODEC.stream(stop), CODEC.stream(stop)
    first = 0
    for size in sizes:
        block = tokens[first : first + size]
        expected = next(
            (
                (found, index + 1)
                for index, token in enumerate(block)
                if (found := one_by_one.push(token, may_stop=first + index >= num_early)) is not None
            ),
            None,
        )
        found = in_blocks.extend(block, num_early - first)
        assert (None if found is None else (found.text, found.num_tokens)) == expected
        assert in_blocks.text == one_by_one.text
        if found is not None:
            return
        first += size
    one_by_one.flush()
    in_blocks.flush()
    assert in_blocks.text == one_by_one.text
