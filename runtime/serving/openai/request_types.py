"""Requests of OpenAI's API: what is known, what of it is refused, and within which limits. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sparsespec.builder.config_io import MAX_INT
from sparsespec.runtime.serving.openai.sampling_fields import (
    MAX_ANSWERS,
    AllWhole,
    Alternatives,
    Count,
    EmptyList,
    Fields,
    Neutral,
    SamplingFields,
    TokenId,
    Whole,
    given,
)

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
MAX_PROMPTS = 2048  # OpenAI's

TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True), AllWhole]
# fail_fast: a long prompt is not compared token by token with each of the forms that it does not have.
PromptTexts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
PromptTokens = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]


class CompletionRequest(SamplingFields):
    """POST /v1/completions."""

    prompt: str | PromptTexts | TokenIds | PromptTokens
    max_tokens: Count | None = None
    logprobs: Alternatives | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_ANSWERS), Whole] | None = None
    suffix: Annotated[None, Neutral] = None

    @property
    def token_limit(self) -> int:
        """Of each answer."""
        return given(self.max_tokens, DEFAULT_COMPLETION_TOKENS)


class TextPart(Fields):
    """A piece of a message."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]


class PromptMessage(Fields):
    """What the model is told."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: Annotated[None, Neutral] = None


class AssistantMessage(Fields):
    """What the model said; with the fields in which an answer says nothing, so that it can be sent back."""

    role: Literal["assistant"]
    content: Content
    name: Annotated[None, Neutral] = None
    refusal: Annotated[None, Neutral] = None
    annotations: Annotated[EmptyList | None, Neutral] = None
    audio: Annotated[None, Neutral] = None
    function_call: Annotated[None, Neutral] = None
    tool_calls: Annotated[EmptyList | None, Neutral] = None


Message = Annotated[PromptMessage | AssistantMessage, Field(discriminator="role")]


class TextFormat(Fields):
    """The only format that answers have."""

    type: Literal["text"]


class CacheOptions(Fields):
    """OpenAI's, about its own cache."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None

    # These change no answer.
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    store: bool | None = None

    audio: Annotated[None, Neutral] = None
    function_call: Annotated[Literal["none", "auto"] | None, Neutral] = None
    functions: Annotated[EmptyList | None, Neutral] = None
    modalities: Annotated[Annotated[list[Literal["text"]], Field(max_length=1)] | None, Neutral] = None
    moderation: Annotated[None, Neutral] = None
    prediction: Annotated[None, Neutral] = None
    reasoning_effort: Annotated[None, Neutral] = None
    response_format: Annotated[TextFormat | None, Neutral] = None
    tool_choice: Annotated[Literal["none", "auto"] | None, Neutral] = None
    tools: Annotated[EmptyList | None, Neutral] = None
    verbosity: Annotated[Literal["medium"] | None, Neutral] = None
    web_search_options: Annotated[None, Neutral] = None

    @property
    def token_limit(self) -> int:
        """Of each answer; where none is given, what the engine's max_seq_len leaves, by which all answers end."""
        limits = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return min(limits, default=MAX_INT)
