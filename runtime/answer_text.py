"""An answer's text, decoded no earlier than somebody asks for it: while tokens are scheduled, nobody needs it."""

from __future__ import annotations

from dataclasses import dataclass

from sparsespec.runtime.request import Request
from sparsespec.runtime.results import TokenLogprobs
from sparsespec.runtime.text_stream import TextStream
from sparsespec.runtime.verification import Verification


@dataclass(frozen=True)
class StopFound:
    """A stop text in an answer."""

    text: str
    part: int  # that completes it
    num_tokens: int  # output tokens up to and with the one that completes it


class AnswerText:
    """Grows by parts, which one thread adds; their text is read in any order, by the same thread or by one other.

    A request's output only grows until a stop text is found here: what a part adds does not depend on when it is read.
    """

    def __init__(self, request: Request, stream: TextStream) -> None:
        self.stop: StopFound | None = None  # as far as parts have been read
        self.may_stop = bool(request.spec.params.stop)  # whether any text would end the answer
        self._request = request
        self._stream = stream
        self._token_ends: list[int] = []  # output tokens at the end of each part
        self._text_ends: list[int] = []  # characters at the end of each part that has been read
        self._last_part: int | None = None  # the request had ended with it
        self._whole: str | None = None  # text of an ended request, where it was decoded at once

    def add_part(self) -> int:
        """The request has gained tokens, and perhaps ended; returns the part's number."""
        number = len(self._token_ends)
        if self._request.finish_reason is not None:
            self._last_part = number
        self._token_ends.append(len(self._request.output_token_ids))
        return number

    def parts(self, first: int, last: int) -> str:
        """What parts first..last add to the text; nothing after a stop text."""
        self._read_parts(first)
        if self.may_stop:
            self._read_parts(last + 1)
        else:
            self._read_together(last)
        start = self._text_ends[first - 1] if first else 0
        return self._stream.text[start : self._text_ends[last]]

    def stop_within(self, number: int) -> StopFound | None:
        """The stop text in a part or before it, if there is one."""
        if self.stop is None:
            self._read_parts(number + 1)
        return self.stop

    def num_tokens_before(self, number: int) -> int:
        """Output tokens before a part."""
        return self._token_ends[number - 1] if number else 0

    def verifications(self, first: int, last: int) -> list[Verification]:
        """The verified blocks that parts first..last are of; none of a prompt's first token, nor of an end alone."""
        return self._request.verifications_within(self.num_tokens_before(first), self._token_ends[last])

    def logprobs(self, first: int, last: int) -> tuple[TokenLogprobs, ...]:
        """Log-probabilities of the tokens of parts first..last, where they were asked for."""
        return tuple(self._request.logprobs[self.num_tokens_before(first) : self._token_ends[last]])

    def so_far(self) -> str:
        """All of the text; with what is held back if the request has ended."""
        if self._whole is None:
            self._whole = self._at_once()
        if self._whole is not None:
            return self._whole
        if self.stop_within(len(self._token_ends) - 1) is None and self._request.finish_reason is not None:
            self._stream.flush()  # it may have been cancelled, which is no part
        return self._stream.text

    def _at_once(self) -> str | None:
        """All of the text of a request that has ended, if nobody looks for a stop text and it can be had so.

        A call of the tokenizer for each part, thousands of them, may take half as long as generating the answer did.
        """
        num_read = len(self._text_ends)
        if self.may_stop or self._request.finish_reason is None or len(self._token_ends) - num_read < 2:
            return None
        return self._stream.with_last(self._request.output_token_ids[self.num_tokens_before(num_read) :])

    def _read_parts(self, count: int) -> None:
        for number in range(len(self._text_ends), count):
            if self.stop is None:
                self._read(number, number)
            self._text_ends.append(len(self._stream.text))

    def _read_together(self, last: int) -> None:
        """What has not been read up to part last, in one call: nobody asks which of them adds what."""
        num_new = last + 1 - len(self._text_ends)
        if num_new > 0:
            self._read(len(self._text_ends), last)
            self._text_ends += [len(self._stream.text)] * num_new

    def _read(self, number: int, last: int) -> None:
        """Parts number..last; where they may stop, one alone."""
        first = self.num_tokens_before(number)
        tokens = self._request.output_token_ids[first : self._token_ends[last]]
        # The token in place min_tokens, counted from 1, is the first that may complete a stop text.
        found = self._stream.extend(tokens, num_early=self._request.spec.params.min_tokens - 1 - first)
        if found is not None:
            self.stop = StopFound(found.text, number, first + found.num_tokens)
        elif last == self._last_part:
            self._stream.flush()
