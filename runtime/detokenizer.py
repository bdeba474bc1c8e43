"""The text that tokens add to an answer, one by one. Never raises for what a model may sample. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# A character has at most four bytes, so at most four tokens; more at once are broken beyond mending. Bounds the work.
_MOST_PENDING = 64


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """Tokens that may be added at once."""

    token_ids: list[int]
    text: str  # what they add, each character whole


class Detokenizer:
    """Decodes the last tokens together, as a token's text depends on those before it, and as characters span tokens.

    decode: text of token ids, special tokens left out, U+FFFD for bytes that are no character.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []  # the tokens whose text came out last, then those that wait
        self._num_out = 0  # of the window
        self._text_out = ""  # of these

    def push(self, token_id: int) -> str:
        """The text that a token completes; empty while a character is incomplete."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(_BROKEN) and len(self._window) - self._num_out < _MOST_PENDING:
            return ""
        return self._take(text)

    def together(self, token_ids: Sequence[int]) -> TokenBlock | None:
        """What pushing these tokens adds, found out in one go; None where it takes pushing them one by one to know.

        That is where a character is broken, or not complete yet: what others show of it depends on when they look.
        """
        text = self._decode([*self._window, *token_ids])
        return None if _BROKEN in text else TokenBlock(list(token_ids), text[self._length_out(text) :])

    def add(self, block: TokenBlock) -> None:
        """Push the block that `together` has just made."""
        if block.text:
            self._move_window(block.token_ids)
        else:
            self._window += block.token_ids

    def flush(self) -> str:
        """No more tokens: what waits, including bytes that never became a character."""
        return self._take(self._decode(self._window))

    def _take(self, text: str) -> str:
        new = text[self._length_out(text) :]
        if new:
            self._move_window(self._window[self._num_out :])
        return new

    def _move_window(self, token_ids: list[int]) -> None:
        """To tokens whose text is out."""
        self._window = token_ids
        self._num_out = len(token_ids)
        self._text_out = self._decode(token_ids)

    def _length_out(self, text: str) -> int:
        """How much of the window's text is out already.

        A byte that is no character spoils the whole run of byte tokens around it (SentencePiece's byte fallback): each
        byte of the run reads as U+FFFD then, also those that were out as characters.
        """
        if text.startswith(self._text_out):
            return len(self._text_out)
        pairs = enumerate(zip(text, self._text_out, strict=False))
        same = next((index for index, (new, old) in pairs if new != old), min(len(text), len(self._text_out)))
        spoiled = len(self._text_out[same:].encode())
        if text[same : same + spoiled] == _BROKEN * spoiled:
            return same + spoiled
        return len(self._text_out)
