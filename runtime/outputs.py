"""What a caller gets back; names as in vLLM and the TensorRT-LLM LLM API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sparsespec.runtime.answer_text import AnswerText
from sparsespec.runtime.request import FinishReason
from sparsespec.runtime.results import TokenLogprobs
from sparsespec.runtime.verification import Verification


class OutputDelta(NamedTuple):
    """What one answer gained in a step."""

    request_id: int
    index: int  # type: ignore[assignment]  # which of the prompt's n answers; nobody looks for places in this tuple
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    answer_text: AnswerText
    part: int  # of answer_text

    @property
    def text(self) -> str:
        """Decoded when first asked for; any thread may read it again."""
        return self.answer_text.part(self.part)

    @property
    def num_accepted(self) -> int:
        """How many of token_ids are accepted drafts; those come first, then one that the model added, if any."""
        verification = self.verification
        return 0 if verification is None else min(verification.num_accepted, len(self.token_ids))

    @property
    def verification(self) -> Verification | None:
        """The verified block that token_ids are of; None for a prompt's first token."""
        return self.answer_text.verification(self.part)

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        """One per token where asked for, else empty."""
        return self.answer_text.logprobs(self.part)[: len(self.token_ids)]

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
