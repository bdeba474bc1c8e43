"""Requests as their callers see them: n answers to a prompt, each with its text."""

from __future__ import annotations

from dataclasses import dataclass

from sparsespec.runtime.answer_text import AnswerText
from sparsespec.runtime.outputs import CompletionOutput, OutputDelta, RequestOutput
from sparsespec.runtime.prompt_input import Prompt
from sparsespec.runtime.request import Request


@dataclass(frozen=True, eq=False)
class Answer:
    """One of a prompt's n answers, growing."""

    request_id: int  # the id that the caller holds
    index: int
    request: Request
    text: AnswerText

    def grow(self, tokens: tuple[int, ...]) -> OutputDelta:
        """The request has just gained tokens, and may have ended."""
        part = self.text.add_part()
        return OutputDelta(self.request_id, self.index, tokens, self.request.finish_reason, self.text, part)

    def completion(self) -> CompletionOutput:
        """The answer so far."""
        return CompletionOutput(
            index=self.index,
            text=self.text.so_far(),
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
