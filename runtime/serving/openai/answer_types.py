"""Answers of OpenAI's API, whole and in chunks. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

StopReason = Literal["stop", "length"]


def _is_none(value: object) -> bool:
    return value is None


_left_out_if_none = Field(exclude_if=_is_none)


class Answer(BaseModel):
    """An object in an answer."""

    model_config = ConfigDict(extra="forbid")


class TokenInfo(Answer):
    """Extension: one token of an answer, where `return_tokens` asks for it."""

    token: str
    bytes: list[int]  # of its UTF-8; may be a part of a character, none for a special token
    accepted_draft: bool  # drafted and found right, not the model's own step


class PromptTokensDetails(Answer):
    """Nothing is kept between requests."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionTokensDetails(Answer):
    """Drafts are what OpenAI calls predictions. The rejected ones are not part of completion_tokens here."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    reasoning_tokens: int = 0
    audio_tokens: int = 0


class Usage(Answer):
    """Each prompt counted once, all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class CompletionLogprobs(Answer):
    """One entry per token in each list."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None  # with the token's own; null where none but that was asked for
    text_offset: list[int]  # characters of the choice's text before the token


class CompletionChoice(Answer):
    """One answer, or what one gained."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: StopReason | None
    tokens: Annotated[list[TokenInfo] | None, _left_out_if_none] = None


class Completion(Answer):
    """Of /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class TopLogprob(Answer):
    """One of the most likely tokens."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(Answer):
    """One token of the answer."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """One entry per token."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class ChatMessageAnswer(Answer):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Answer):
    """One answer."""

    index: int
    message: ChatMessageAnswer
    logprobs: ChatLogprobs | None
    finish_reason: StopReason
    tokens: Annotated[list[TokenInfo] | None, _left_out_if_none] = None


class ChatCompletion(Answer):
    """Of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(Answer):
    """What an answer gained: its role first, in the end nothing."""

    role: Annotated[Literal["assistant"] | None, _left_out_if_none] = None
    content: Annotated[str | None, _left_out_if_none] = None


class ChatChunkChoice(Answer):
    """What one answer gained."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: StopReason | None = None
    tokens: Annotated[list[TokenInfo] | None, _left_out_if_none] = None


class ModelCard(Answer):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sparsespec"


class ModelList(Answer):
    """Of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(Answer):
    """What went wrong; the message is for people."""

    message: str
    type: str
    param: str | None  # the field of the request
    code: str | None


class ErrorBody(Answer):
    """Of every answer that is none."""

    error: ErrorDetail
