"""What became of one request: a line of the log, and what metrics are made of. No torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Literal

from sparsespec.builder.errors import RequestError
from sparsespec.runtime.outputs import OutputDelta, RequestOutput
from sparsespec.runtime.serving.service_errors import DeadlineError, DrainingError, OverloadedError
from sparsespec.runtime.verification import Verification

Outcome = Literal["finished", "cancelled", "invalid", "overloaded", "draining", "timed_out", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("finished", "cancelled", "invalid", "overloaded", "draining", "timed_out", "failed")


@dataclass(frozen=True)
class RequestEnded:
    """A line of the log."""

    request_id: str
    outcome: Outcome
    error: str | None
    prompt_tokens: int
    output_tokens: int
    drafts: int
    accepted_drafts: int
    finish_reasons: tuple[str, ...]  # of each answer that was finished
    first_token_s: float | None
    duration_s: float


class RequestRecord:
    """Grows with its request."""

    def __init__(self, request_id: str, clock: Callable[[], float] = monotonic) -> None:
        self.outcome: Outcome = "cancelled"  # until it is known
        self.error: str | None = None
        self.prompt_tokens = 0
        self.first_token_s: float | None = None
        self.duration_s = 0.0
        self._request_id = request_id
        self._clock = clock
        self._start = clock()
        self._output_tokens = 0
        self._drafts = 0
        self._accepted_drafts = 0
        self._finish_reasons: list[str] = []

    @property
    def token_s(self) -> float | None:
        """Mean time for each token after the first; None where there are none."""
        if self.first_token_s is None or self._output_tokens < 2:
            return None
        return (self.duration_s - self.first_token_s) / (self._output_tokens - 1)

    def gain(self, delta: OutputDelta, verifications: Sequence[Verification]) -> None:
        """The request's stream brought a delta, which is of those verifications."""
        if self.first_token_s is None:
            self.first_token_s = self._clock() - self._start
        self._output_tokens += len(delta.token_ids)
        self._drafts += sum(check.num_drafts for check in verifications)
        self._accepted_drafts += sum(check.num_kept_drafts for check in verifications)
        if delta.finish_reason is not None:
            self._finish_reasons.append(delta.finish_reason)

    def finish(self, output: RequestOutput) -> None:
        """All of its answers have come to their ends."""
        self.prompt_tokens = len(output.prompt_token_ids)
        self.outcome = "finished"

    def fail(self, error: BaseException) -> None:
        """The request ended with an error, or whoever asked has left."""
        self.outcome = _outcome_of(error)
        self.error = None if self.outcome == "cancelled" else str(error)

    def end(self) -> RequestEnded:
        """Nothing more comes; what to tell of it."""
        self.duration_s = self._clock() - self._start
        return RequestEnded(
            request_id=self._request_id,
            outcome=self.outcome,
            error=self.error,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self._output_tokens,
            drafts=self._drafts,
            accepted_drafts=self._accepted_drafts,
            finish_reasons=tuple(self._finish_reasons),
            first_token_s=None if self.first_token_s is None else round(self.first_token_s, 6),
            duration_s=round(self.duration_s, 6),
        )


def _outcome_of(error: BaseException) -> Outcome:
    kinds: tuple[tuple[type[BaseException], Outcome], ...] = (
        (RequestError, "invalid"),
        (OverloadedError, "overloaded"),
        (DrainingError, "draining"),
        (DeadlineError, "timed_out"),
        (GeneratorExit, "cancelled"),
        (asyncio.CancelledError, "cancelled"),
    )
    return next((outcome for kind, outcome in kinds if isinstance(error, kind)), "failed")
