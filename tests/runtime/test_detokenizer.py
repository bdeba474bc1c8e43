"""Text of any tokens, by two kinds of tokenizer: no exception, and nothing that was out changes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from sparsespec.runtime.detokenizer import Detokenizer
from tiny_models import tiny_tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"
WORDS = ("▁a", "▁the", "b", "é", "</s>")


def sentencepiece() -> Tokenizer:
    """With byte fallback, as of Llama 2: 256 byte tokens, then WORDS, of which the last is special."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {word: 256 + place for place, word in enumerate(WORDS)}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([WORDS[-1]])
    return tokenizer


Blocks = list[list[int]]
SENTENCEPIECE, BYTE_LEVEL = sentencepiece(), tiny_tokenizer(260).backend_tokenizer
A, THE, B, E_ACUTE, END = range(256, 256 + len(WORDS))


def pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """What each token adds, then what comes at the end."""
    detokenizer = Detokenizer(tokenizer.decode)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([A, B, THE], ["a", "b", " the", ""]),
        ([A, *"€".encode(), B], ["a", "", "", "€", "b", ""]),
        ([A, END, THE], ["a", "", " the", ""]),  # the space after a special token stays
        ([A, 0xE2, 0x82], ["a", "", "", BROKEN * 2]),
        ([0x0A, 0xE2, A], ["\n", "", BROKEN + " a", ""]),  # a newline that is out is spoiled by what follows
        ([0x41, 0xC3, B], ["A", "", BROKEN + "b", ""]),
        ([*"😀".encode(), 0xC3, A], ["", "", "", "😀", "", BROKEN + " a", ""]),
        ([0x41, 0xC3, 0xC3, B, 0x42], ["A", "", "", BROKEN * 2 + "b", "B", ""]),
        ([0x41, 0xC3, END, THE], ["A", "", "", BROKEN + " the", ""]),
    ],
)
def test_pieces_of_a_tokenizer_with_byte_fallback(tokens: list[int], expected: list[str]) -> None:
    assert pieces(SENTENCEPIECE, tokens) == expected


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([0x0A, 0x41, 0xC3, 0xA9, 0xE2, 0xF0, A, THE, B, E_ACUTE, END]), max_size=24))
def test_words_survive_any_bytes_around_them(tokens: list[int]) -> None:
    shown = "".join(pieces(SENTENCEPIECE, tokens))
    words = [WORDS[token - 256].replace("▁", " ") for token in tokens if A <= token < END]
    rest = f" {shown}"  # the first token's space is not shown
    for word in words:
        _, found, rest = rest.partition(word)
        assert found, (shown, words)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 255), max_size=40))
def test_valid_bytes_are_shown_as_they_are(codes: list[int]) -> None:
    text = "".join(map(chr, codes))
    assert "".join(pieces(SENTENCEPIECE, list(text.encode()))) == text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 259), max_size=40))
def test_byte_level_pieces_join_to_the_whole_text(tokens: list[int]) -> None:
    assert "".join(pieces(BYTE_LEVEL, tokens)) == BYTE_LEVEL.decode(tokens)


@pytest.mark.parametrize("tokenizer", [SENTENCEPIECE, BYTE_LEVEL])
def test_a_long_run_of_broken_bytes_is_not_decoded_again_and_again(tokenizer: Tokenizer) -> None:
    longest = 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return str(tokenizer.decode(list(tokens)))

    detokenizer = Detokenizer(decode)
    broken = tokenizer.token_to_id("<0xC3>")
    token = broken if broken is not None else tokenizer.token_to_id("Ã")
    shown = "".join(detokenizer.push(token) for _ in range(1000)) + detokenizer.flush()
    assert shown == BROKEN * 1000
    assert longest <= 128


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.sampled_from([SENTENCEPIECE, BYTE_LEVEL]),
    st.lists(st.lists(st.integers(0, 259), max_size=9), max_size=6),
    st.lists(st.lists(st.sampled_from([0x0A, 0x41, 0xC3, 0xA9, A, THE, B, E_ACUTE]), max_size=9), max_size=6),
)
def test_blocks_add_what_their_tokens_add(tokenizer: Tokenizer, any_blocks: Blocks, text_blocks: Blocks) -> None:
    """However tokens come, the text is the same after each block."""
    for blocks in (any_blocks, text_blocks, any_blocks + text_blocks):
        one_by_one, together = Detokenizer(tokenizer.decode), Detokenizer(tokenizer.decode)
        for tokens in blocks:
            expected = "".join(map(one_by_one.push, tokens))
            assert push_block(together, tokens) == expected
        assert one_by_one.flush() == together.flush()


def push_block(detokenizer: Detokenizer, tokens: list[int]) -> str:
    block = detokenizer.together(tokens)
    if block is None:
        return "".join(map(detokenizer.push, tokens))
    detokenizer.add(block)
    return block.text


def test_a_block_of_whole_characters_is_decoded_twice_however_long() -> None:
    """Once with what came before, once alone."""
    decoded: list[int] = []

    def decode(tokens: Sequence[int]) -> str:
        decoded.append(len(tokens))
        return str(BYTE_LEVEL.decode(list(tokens)))

    detokenizer = Detokenizer(decode)
    tokens = BYTE_LEVEL.encode("words, and é as well").ids
    assert push_block(detokenizer, tokens) == "words, and é as well"
    assert decoded == [len(tokens)] * 2
