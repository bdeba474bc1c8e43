"""Requests as their callers see them: n answers to a prompt, each with its text."""

from __future__ import annotations

from dataclasses import dataclass

from sparsespec.runtime.outputs import CompletionOutput, OutputDelta, RequestOutput
from sparsespec.runtime.prompt_input import Prompt
from sparsespec.runtime.request import Request
from sparsespec.runtime.text import TextStream


@dataclass(frozen=True)
class StopFound:
    """A stop text in an answer."""

    text: str
    num_tokens: int  # output tokens up to and with the one that completes it


@dataclass(eq=False)
class Answer:
    """One of a prompt's n answers, growing."""

    request_id: int  # the id that the caller holds
    index: int
    request: Request
    stream: TextStream
    told_tokens: int = 0  # of the request's output, those that a delta has carried
    told_text: int = 0  # characters, likewise

    def extend(self, tokens: tuple[int, ...]) -> StopFound | None:
        """Add the text of tokens that the request has just gained; returns the stop text that ends it, if one does."""
        first = len(self.request.output_token_ids) - len(tokens)
        for place, token in enumerate(tokens, start=first + 1):
            stop = self.stream.push(token, may_stop=place >= self.request.spec.params.min_tokens)
            if stop is not None:
                return StopFound(stop, place)
        if self.request.finish_reason is not None:
            self.stream.flush()
        return None

    def take_delta(self) -> OutputDelta:
        """What the answer has gained since the last delta."""
        tokens = tuple(self.request.output_token_ids[self.told_tokens :])
        text = self.stream.text[self.told_text :]
        self.told_tokens += len(tokens)
        self.told_text += len(text)
        return OutputDelta(self.request_id, self.index, text, tokens, self.request.finish_reason)

    def completion(self) -> CompletionOutput:
        """The answer so far."""
        return CompletionOutput(
            index=self.index,
            text=self.stream.text,
            token_ids=tuple(self.request.output_token_ids),
            logprobs=tuple(self.request.logprobs),
            finish_reason=self.request.finish_reason,
            stop_reason=self.request.stop_reason,
            verifications=tuple(self.request.verifications),
        )


@dataclass(frozen=True)
class SubmittedRequest:
    """What a caller submitted and what has come of it."""

    request_id: int
    prompt: Prompt
    answers: list[Answer]

    def output(self) -> RequestOutput:
        """All answers so far."""
        answers = tuple(answer.completion() for answer in self.answers)
        return RequestOutput(self.request_id, self.prompt.text, self.prompt.token_ids, answers)
