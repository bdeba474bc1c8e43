"""Tokens by themselves."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from sparsespec.runtime.token_pieces import TokenPieces
from tiny_models import tiny_tokenizer

TEXT = "the naïve 😀 costs 5 €\n"


def test_pieces_of_bytes_make_up_the_text() -> None:
    backend = tiny_tokenizer(260).backend_tokenizer
    pieces = TokenPieces(backend)
    parts = [pieces.utf8(token) for token in backend.encode(TEXT).ids]
    assert b"".join(parts).decode() == TEXT
    assert b"th" in parts
    assert [part for part in parts if len(part) == 1 and part[0] >= 0x80]  # parts of characters


def test_part_of_a_character_reads_as_broken() -> None:
    backend = tiny_tokenizer(260).backend_tokenizer
    first = backend.encode("€").ids[0]
    assert TokenPieces(backend).text(first) == "\ufffd"


def test_a_special_token_has_a_name_and_no_text() -> None:
    pieces = TokenPieces(tiny_tokenizer(260).backend_tokenizer)
    assert (pieces.text(0), pieces.utf8(0)) == ("<|eos|>", b"")


def test_a_row_of_logits_without_a_token_is_nothing() -> None:
    pieces = TokenPieces(tiny_tokenizer(260).backend_tokenizer)
    assert (pieces.text(100_000), pieces.utf8(100_000)) == ("", b"")


@pytest.mark.parametrize(
    ("piece", "expected"), [("\u2581the", b" the"), ("the", b"the"), ("<0xE2>", b"\xe2"), ("<0x41>", b"A")]
)
def test_sentencepiece(piece: str, expected: bytes) -> None:
    """A decoder that strips the space before a text, and bytes as tokens."""
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, piece: 1}, merges=[]))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    assert TokenPieces(tokenizer).utf8(1) == expected


def test_without_a_decoder_a_piece_is_its_text() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "<0x41>": 1}, merges=[]))
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    pieces = TokenPieces(tokenizer)
    assert [pieces.utf8(token) for token in range(3)] == [b"a", b"<0x41>", b""]
