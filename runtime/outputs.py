"""What a caller gets back; names as in vLLM and the TensorRT-LLM LLM API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sparsespec.runtime.answer_text import AnswerText
from sparsespec.runtime.request import FinishReason
from sparsespec.runtime.results import TokenLogprobs
from sparsespec.runtime.verification import Verification, drafted


class OutputDelta(NamedTuple):
    """What one answer gained in a step, or in several."""

    request_id: int
    index: int  # type: ignore[assignment]  # which of the prompt's n answers; nobody looks for places in this tuple
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    answer_text: AnswerText
    part: int  # of answer_text, the last one
    num_parts: int = 1  # of answer_text that end with it

    @property
    def text(self) -> str:
        """Decoded when first asked for; any thread may read it again."""
        return self.answer_text.parts(self._first_part, self.part)

    @property
    def verifications(self) -> list[Verification]:
        """The verified blocks that token_ids are of; a prompt's first token is of none."""
        return self.answer_text.verifications(self._first_part, self.part)

    @property
    def accepted(self) -> tuple[bool, ...]:
        """Of each of token_ids, whether it is an accepted draft; the last of a block is the model's own."""
        first_output = self.answer_text.num_tokens_before(self._first_part)
        return drafted(self.verifications, first_output, len(self.token_ids))

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        """One per token where asked for, else empty."""
        return self.answer_text.logprobs(self._first_part, self.part)[: len(self.token_ids)]

    @property
    def _first_part(self) -> int:
        return self.part - self.num_parts + 1

    def with_next(self, later: OutputDelta) -> OutputDelta:
        """This delta and the answer's next one, as one."""
        return later._replace(token_ids=self.token_ids + later.token_ids, num_parts=self.num_parts + later.num_parts)

    def up_to_stop(self) -> OutputDelta | None:
        """This delta, cut where a stop text ends the answer; None where one ended it before. Decodes if one may."""
        if not self.answer_text.may_stop:
            return self
        stop = self.answer_text.stop_within(self.part)
        if stop is None or stop.part > self.part:
            return self
        if stop.part < self.part:
            return None
        kept = stop.num_tokens - self.answer_text.num_tokens_before(self.part)
        return self._replace(token_ids=self.token_ids[:kept], finish_reason="stop")


@dataclass(frozen=True)
class CompletionOutput:
    """One answer."""

    index: int
    text: str
    token_ids: tuple[int, ...]  # including the stop token that ended it, if one did
    logprobs: tuple[TokenLogprobs, ...]  # one per token where asked for, else empty
    finish_reason: FinishReason | None
    stop_reason: int | str | None  # the stop token or text of the caller's that ended it
    verifications: tuple[Verification, ...]

    @property
    def accepted(self) -> tuple[bool, ...]:
        """Of each of token_ids, whether it is an accepted draft."""
        return drafted(self.verifications, 0, len(self.token_ids))


@dataclass(frozen=True)
class RequestOutput:
    """One prompt and its n answers."""

    request_id: int
    prompt: str | None  # None where token ids were given
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]

    @property
    def finished(self) -> bool:
        """Whether every answer has ended."""
        return all(output.finish_reason is not None for output in self.outputs)
