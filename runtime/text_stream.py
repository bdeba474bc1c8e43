"""The text of one answer as its tokens come in. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsespec.runtime.detokenizer import Detokenizer
from sparsespec.runtime.stop_texts import StopTexts


@dataclass(frozen=True)
class FoundStop:
    """A stop text, complete."""

    text: str
    num_tokens: int  # of those just added, up to and with the one that completes it


class TextStream:
    """One answer's text: grows token by token, ends before the first stop text.

    Text that may turn out to begin a stop text is held back until that is decided.
    """

    def __init__(self, detokenizer: Detokenizer, stop: tuple[str, ...]) -> None:
        self.text = ""  # released
        self._held = ""
        self._detokenizer = detokenizer
        self._stop = StopTexts(stop)

    def extend(self, token_ids: Sequence[int], num_early: int) -> FoundStop | None:
        """Add tokens, of which the first num_early may not stop, up to the first that completes a stop text.

        As if each were pushed; that is only done where a stop text or a broken character may be among them.
        """
        block = self._detokenizer.together(token_ids)
        if block is None or self._stop.first_in(self._held + block.text):
            return self._push_each(token_ids, num_early)
        self._detokenizer.add(block)
        self._hold(block.text)
        self._release_decided()
        return None

    def push(self, token_id: int, may_stop: bool) -> str | None:
        """Add a token; returns the stop text that it completes, if it does and may."""
        self._hold(self._detokenizer.push(token_id))
        found = self._stop.first_in(self._held)
        if found and may_stop:
            end, stop = found
            self._release(end)
            self._held = ""
            return stop
        self._release_decided()
        return None

    def with_last(self, token_ids: Sequence[int]) -> str | None:
        """All of the text if these tokens were added to end it, where no stop text is looked for; changes nothing.

        None where a broken character is among them.
        """
        block = self._detokenizer.together(token_ids)
        return None if block is None else self.text + self._held + block.text

    def flush(self) -> None:
        """No more tokens: release what is held, including bytes that never became a character."""
        self._held += self._detokenizer.flush()
        self._release(len(self._held))

    def _push_each(self, token_ids: Sequence[int], num_early: int) -> FoundStop | None:
        for index, token in enumerate(token_ids):
            stop = self.push(token, may_stop=index >= num_early)
            if stop is not None:
                return FoundStop(stop, index + 1)
        return None

    def _hold(self, new: str) -> None:
        self._held += new
        self._stop.push(new)

    def _release_decided(self) -> None:
        self._release(len(self._held) - self._stop.undecided)

    def _release(self, length: int) -> None:
        self.text += self._held[:length]
        self._held = self._held[length:]
