"""What requests for completions and for chats have in common: how an answer is sampled, ended and sent. No torch."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from sparsespec.builder.config_io import MAX_INT
from sparsespec.runtime.sampling_params import (
    MAX_LOGPROBS,
    MAX_STOP_CHARS,
    MAX_STOP_TEXTS,
    MAX_STOP_TOKEN_IDS,
    MAX_TEMPERATURE,
    SamplingParams,
)
from sparsespec.runtime.serving.openai.errors import FieldError

# OpenAI's own limit; SamplingParams would take more.
MAX_ANSWERS = 128
# Below 2^63, which SamplingParams has: a schema's bounds are doubles, of which this is one to the last of its digits.
MAX_SEED = 9_223_372_036_854_774_000

ValueT = TypeVar("ValueT")


def _whole(value: Any) -> Any:
    """JSON has one kind of numbers: 5.0 is an integer there."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _all_whole(values: Any) -> Any:
    return [_whole(value) for value in values] if isinstance(values, list) else values


Whole, AllWhole = BeforeValidator(_whole), BeforeValidator(_all_whole)

TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]  # in lists alone, which are AllWhole: a call for each takes long
Count = Annotated[int, Field(ge=1, le=MAX_INT), Whole]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Alternatives = Annotated[int, Field(ge=0, le=MAX_LOGPROBS), Whole]
Penalty = Annotated[float, Field(ge=-2, le=2)]
StopTokenIds = Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS, fail_fast=True), AllWhole]
EmptyList = Annotated[list[None], Field(max_length=0)]
EmptyObject = Annotated[dict[str, None], Field(max_length=0)]


def _neutral_or_refused(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        raise PydanticCustomError("unsupported", "not supported: leave it out, or null") from None


# Of a field that would change the answer and that nothing here can do: only values that ask for nothing are taken.
Neutral = WrapValidator(_neutral_or_refused)


class Fields(BaseModel):
    """An object in a request: nothing unknown in it, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(Fields):
    """OpenAI's. include_obfuscation would pad chunks against listeners; nothing here does."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SamplingFields(Fields):
    """Null stands for the default, as OpenAI has it. From top_k on: extensions, named as in SamplingParams and vLLM."""

    model: str
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS), Whole] | None = None
    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED), Whole] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOP_TEXTS, fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    logit_bias: Annotated[EmptyObject | None, Neutral] = None

    top_k: Annotated[int, Field(ge=0, le=MAX_INT), Whole] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INT), Whole] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: StopTokenIds | None = None
    priority: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT), Whole] | None = None
    return_tokens: bool | None = None

    @property
    def num_answers(self) -> int:
        """For each prompt."""
        return given(self.n, 1)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def check_stream_options(self) -> None:
        """As OpenAI does. Raises FieldError."""
        if self.stream_options is not None and not self.stream:
            raise FieldError("stream_options", "stream_options may only be given with stream: true")

    def sampling_params(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """Raises RequestError for what fits each field's range, but not the others."""
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=given(self.min_tokens, 0),
            temperature=given(self.temperature, 1.0),
            top_k=given(self.top_k, 0),
            top_p=given(self.top_p, 1.0),
            min_p=given(self.min_p, 0.0),
            repetition_penalty=given(self.repetition_penalty, 1.0),
            presence_penalty=given(self.presence_penalty, 0.0),
            frequency_penalty=given(self.frequency_penalty, 0.0),
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(given(self.stop, [])),
            stop_token_ids=tuple(given(self.stop_token_ids, [])),
            ignore_eos=bool(self.ignore_eos),
            n=self.num_answers,
            logprobs=logprobs,
        )


def given(value: ValueT | None, default: ValueT) -> ValueT:
    """What a field says, or its default where it is left out or null."""
    return default if value is None else value
