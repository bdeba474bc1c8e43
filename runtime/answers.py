"""Requests as their callers see them: n answers to a prompt, each with its text."""

from __future__ import annotations

from dataclasses import dataclass

from sparsespec.runtime.outputs import CompletionOutput, OutputDelta, RequestOutput
from sparsespec.runtime.prompt_input import Prompt
from sparsespec.runtime.request import Request
from sparsespec.runtime.text import TextStream


@dataclass(eq=False)
class Answer:
    """One of a prompt's n answers, growing."""

    request_id: int  # the id that the caller holds
    index: int
    request: Request
    stream: TextStream

    def extend(self, tokens: tuple[int, ...]) -> OutputDelta:
        """Add the tokens that the request has just gained; a stop text among them ends it there."""
        request, before = self.request, len(self.stream.text)
        first = len(request.output_token_ids) - len(tokens)
        for place, token in enumerate(tokens, start=first + 1):
            stop = self.stream.push(token, may_stop=place >= request.spec.params.min_tokens)
            if stop is not None:
                request.truncate_output(place)
                request.finish("stop", stop)
                return self._delta(before, tokens[: place - first])
        if request.finish_reason is not None:
            self.stream.flush()
        return self._delta(before, tokens)

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

    def _delta(self, before: int, tokens: tuple[int, ...]) -> OutputDelta:
        text = self.stream.text[before:]
        return OutputDelta(self.request_id, self.index, text, tokens, self.request.finish_reason)


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
