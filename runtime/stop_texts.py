"""Stop texts in an answer that grows. No torch."""

from __future__ import annotations


class StopTexts:
    """How much of each stop text the answer's end may be the beginning of (Knuth, Morris and Pratt 1977).

    A character costs a few steps for each stop text, however long they are.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._borders = [_borders(one) for one in stop]
        self._matched = [0] * len(stop)

    @property
    def undecided(self) -> int:
        """Characters at the answer's end that begin a stop text; of a complete one, those that begin another."""
        return max(self._matched, default=0)

    def push(self, text: str) -> None:
        """The answer has grown by a text."""
        for index, (stop, borders) in enumerate(zip(self._stop, self._borders, strict=True)):
            matched = self._matched[index]
            for character in text:
                while matched and stop[matched] != character:
                    matched = borders[matched - 1]
                matched += stop[matched] == character
                if matched == len(stop):
                    matched = borders[matched - 1]
            self._matched[index] = matched

    def first_in(self, text: str) -> tuple[int, str] | None:
        """Where the earliest stop text begins, and which it is; of those that begin together, the shortest."""
        return min(((text.find(stop), stop) for stop in self._stop if stop in text), default=None)


def _borders(stop: str) -> list[int]:
    """For each length less one, the longest proper end of so long a beginning that is a beginning itself."""
    borders = [0] * len(stop)
    matched = 0
    for index in range(1, len(stop)):
        while matched and stop[matched] != stop[index]:
            matched = borders[matched - 1]
        matched += stop[matched] == stop[index]
        borders[index] = matched
    return borders
