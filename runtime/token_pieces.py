"""Tokens by themselves, as log-probabilities tell of them and a page marks them."""

from __future__ import annotations

import re
from functools import cached_property

from tokenizers import Tokenizer

_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")  # SentencePiece's byte fallback


class TokenPieces:
    """What single tokens of a tokenizer stand for; each is found out once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}

    def text(self, token_id: int) -> str:
        """For people: U+FFFD in place of bytes that are no character, the name of a special token."""
        return self._special.get(token_id) or self.utf8(token_id).decode(errors="replace")

    def utf8(self, token_id: int) -> bytes:
        """What the token adds to a text, UTF-8; perhaps a part of a character. Nothing for a special token."""
        if token_id not in self._known:
            self._known[token_id] = b"" if token_id in self._special else self._find(token_id)
        return self._known[token_id]

    @cached_property
    def _special(self) -> dict[int, str]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {token_id: token.content for token_id, token in added.items() if token.special}

    @cached_property
    def _is_byte_level(self) -> bool:
        """Whether a piece has a printable stand-in for each byte, as GPT-2's do: there \u0120 stands for a space."""
        return self._join(["a", "\u0120a"]) == "a a"

    def _find(self, token_id: int) -> bytes:
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:  # models have more rows of logits than their tokenizers have tokens
            return b""
        byte = _BYTE_PIECE.fullmatch(piece)
        if byte and self._join([piece]) != piece:
            return bytes([int(byte.group(1), 16)])
        if self._is_byte_level and all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        # A decoder may strip the space before the first piece of a text, so it is asked for a second.
        return self._join(["a", piece]).removeprefix("a").encode()

    def _join(self, pieces: list[str]) -> str:
        decoder = self._tokenizer.decoder
        return "".join(pieces) if decoder is None else decoder.decode(pieces)


def _bytes_by_stand_in() -> dict[str, int]:
    """GPT-2's: printable Latin-1 stands for itself, the other bytes for U+0100 and on, in their order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _bytes_by_stand_in()
