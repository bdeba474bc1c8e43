"""A POST and its answer: what is asked of the service, and how the answer is sent, whole or as a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from sparsespec.runtime.outputs import OutputDelta, RequestOutput
from sparsespec.runtime.prompt_input import PromptInput
from sparsespec.runtime.request import FinishReason
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.serving.openai.answer_types import (
    CompletionTokensDetails,
    PromptTokensDetails,
    StopReason,
    Usage,
)
from sparsespec.runtime.serving.openai.errors import UnknownModelError
from sparsespec.runtime.serving.openai.event_stream import DONE, ChunkFrame, ClientLeft, EventStream, unless_left
from sparsespec.runtime.serving.openai.parallel_prompts import run_prompts
from sparsespec.runtime.serving.openai.sampling_fields import SamplingFields, given
from sparsespec.runtime.serving.service import Service, ServiceRequest

_CLIENT_CLOSED_REQUEST = 499  # nginx's; only logs see it


@dataclass(frozen=True)
class Heading:
    """What an answer begins with."""

    answer_id: str
    created: int  # seconds since 1970
    model: str


class AnswerForm(Protocol):
    """How one kind of answer is written."""

    @property
    def chunk_object(self) -> str:
        """The `object` of a chunk."""

    def opening(self) -> Sequence[BaseModel]:
        """Choices that are sent before anything was generated."""

    def gained(self, choice: int, delta: OutputDelta) -> Sequence[BaseModel]:
        """What a choice gained."""

    def whole(self, heading: Heading, outputs: Sequence[RequestOutput]) -> BaseModel:
        """The answer, of the prompts' outputs in their order."""


@dataclass(frozen=True)
class Exchange:
    """One POST."""

    service: Service
    heading: Heading
    fields: SamplingFields
    requests: tuple[ServiceRequest, ...]  # one per prompt
    form: AnswerForm

    async def answer(self, request: Request) -> Response:
        """A stream, or all at once. Raises what the service raises."""
        if self.fields.stream:
            return EventStream(self.events())
        try:
            whole = await unless_left(request.receive, self.whole())
        except ClientLeft:
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        return Response(whole.model_dump_json(), media_type="application/json")

    async def whole(self) -> BaseModel:
        """All answers, once all have ended."""
        async with aclosing(run_prompts(self.service, self.requests)) as items:
            outputs = {number: item async for number, item in items if isinstance(item, RequestOutput)}
        return self.form.whole(self.heading, [outputs[number] for number in range(len(self.requests))])

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Chunks as answers grow. None comes before anything was generated: errors until then are HTTP's."""
        outputs: list[RequestOutput] = []
        frame = self._frame()
        opening = self.form.opening()
        async with aclosing(run_prompts(self.service, self.requests)) as items:
            async for number, item in items:
                for choice in opening:
                    yield frame.chunk(choice)
                opening = ()
                if isinstance(item, RequestOutput):
                    outputs.append(item)
                    continue
                for choice in self.form.gained(number * self.fields.num_answers + item.index, item):
                    yield frame.chunk(choice)
        if self.fields.include_usage:
            yield frame.usage(usage_of(outputs))
        yield DONE

    def _frame(self) -> ChunkFrame:
        heading = self.heading
        return ChunkFrame.of(
            heading.answer_id, self.form.chunk_object, heading.created, heading.model, self.fields.include_usage
        )


def head(prefix: str, request_id: str, model: str) -> Heading:
    """Of an answer that begins now."""
    return Heading(f"{prefix}-{request_id}", int(time.time()), model)


def check_model(asked: str, served: str) -> None:
    """Raises UnknownModelError for any but the one."""
    if asked != served:
        raise UnknownModelError(asked)


def service_requests(
    request_id: str, prompts: Sequence[PromptInput], params: SamplingParams, fields: SamplingFields
) -> tuple[ServiceRequest, ...]:
    """One per prompt; where there are several, each has its number in its id."""
    priority = given(fields.priority, 0)
    if len(prompts) == 1:
        return (ServiceRequest(request_id, prompts[0], params, priority),)
    return tuple(
        ServiceRequest(f"{request_id}-{number}", prompt, params, priority) for number, prompt in enumerate(prompts)
    )


def stop_reason(reason: FinishReason | None) -> StopReason:
    """Of an answer that has ended. Those of requests that were cancelled reach nobody."""
    if reason is None or reason == "cancelled":
        raise RuntimeError(f"an answer ended with {reason}, expected stop or length")
    return reason


def usage_of(outputs: Sequence[RequestOutput]) -> Usage:
    """Of all answers. A draft counts as accepted where it is part of the answer, as OpenAI counts predictions."""
    answers = [answer for output in outputs for answer in output.outputs]
    checks = [check for answer in answers for check in answer.verifications]
    num_prompt = sum(len(output.prompt_token_ids) for output in outputs)
    num_completion = sum(len(answer.token_ids) for answer in answers)
    num_accepted = sum(check.num_kept_drafts for check in checks)
    num_drafts = sum(check.num_drafts for check in checks)
    return Usage(
        prompt_tokens=num_prompt,
        completion_tokens=num_completion,
        total_tokens=num_prompt + num_completion,
        prompt_tokens_details=PromptTokensDetails(),
        completion_tokens_details=CompletionTokensDetails(
            accepted_prediction_tokens=num_accepted, rejected_prediction_tokens=num_drafts - num_accepted
        ),
    )
