"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from sparsespec.runtime.outputs import CompletionOutput, OutputDelta, RequestOutput
from sparsespec.runtime.serving.openai.answer_types import Completion, CompletionChoice, CompletionLogprobs
from sparsespec.runtime.serving.openai.errors import FieldError
from sparsespec.runtime.serving.openai.exchange import (
    Exchange,
    Heading,
    check_model,
    head,
    service_requests,
    stop_reason,
    usage_of,
)
from sparsespec.runtime.serving.openai.request_types import CompletionRequest
from sparsespec.runtime.serving.openai.sampling_fields import given
from sparsespec.runtime.serving.openai.token_answers import (
    TextOffsets,
    completion_logprobs,
    token_infos,
)
from sparsespec.runtime.serving.service import Service
from sparsespec.runtime.text import TextCodec

TokensOrText = str | tuple[int, ...]


@dataclass(frozen=True)
class CompletionsEndpoint:
    """Answers with a service, under the name of the model that it serves."""

    service: Service
    model: str

    async def create_completion(self, request: Request, body: CompletionRequest) -> Response:
        """Continue one or several prompts."""
        check_model(body.model, self.model)
        _check_fields(body)
        prompts = list_prompts(body)
        params = body.sampling_params(body.token_limit, body.logprobs)
        request_id: str = request.state.request_id
        exchange = Exchange(
            service=self.service,
            heading=head("cmpl", request_id, self.model),
            fields=body,
            requests=service_requests(request_id, prompts, params, body),
            form=CompletionForm(body, self.service.codec, self._echoes(body, prompts)),
        )
        return await exchange.answer(request)

    def _echoes(self, body: CompletionRequest, prompts: Sequence[TokensOrText]) -> list[str]:
        """What stands before the answers to each prompt."""
        if not body.echo:
            return [""] * len(prompts)
        codec = self.service.codec
        return [prompt if isinstance(prompt, str) else codec.decode(prompt) for prompt in prompts]


@dataclass(frozen=True)
class CompletionForm:
    """Writes text completions."""

    body: CompletionRequest
    codec: TextCodec
    echoes: Sequence[str]  # one per prompt
    _offsets: dict[int, TextOffsets] = field(default_factory=dict)  # of each choice, while it is streamed

    @property
    def chunk_object(self) -> str:
        """As that of a whole answer."""
        return "text_completion"

    def opening(self) -> list[CompletionChoice]:
        """The prompts, where they are to be echoed."""
        if not self.body.echo:
            return []
        n = self.body.num_answers
        texts = [echo for echo in self.echoes for _ in range(n)]
        return [
            CompletionChoice(index=index, text=text, logprobs=None, finish_reason=None)
            for index, text in enumerate(texts)
        ]

    def gained(self, choice: int, delta: OutputDelta) -> list[CompletionChoice]:
        """One chunk; none for tokens that show nothing yet."""
        text = delta.text
        told = text or delta.finish_reason or delta.logprobs or self.body.return_tokens
        if not told:
            return []
        return [
            CompletionChoice(
                index=choice,
                text=text,
                logprobs=self._new_logprobs(choice, delta),
                finish_reason=None if delta.finish_reason is None else stop_reason(delta.finish_reason),
                tokens=token_infos(self.codec, delta) if self.body.return_tokens else None,
            )
        ]

    def whole(self, heading: Heading, outputs: Sequence[RequestOutput]) -> Completion:
        """All choices, prompt by prompt."""
        answers = [(echo, each) for echo, output in zip(self.echoes, outputs, strict=True) for each in output.outputs]
        return Completion(
            id=heading.answer_id,
            created=heading.created,
            model=heading.model,
            choices=[self._choice(index, echo, answer) for index, (echo, answer) in enumerate(answers)],
            usage=usage_of(outputs),
        )

    def _choice(self, index: int, echo: str, answer: CompletionOutput) -> CompletionChoice:
        logprobs = None
        if self.body.logprobs is not None:
            logprobs = completion_logprobs(self.codec, answer.logprobs, TextOffsets())
        return CompletionChoice(
            index=index,
            text=echo + answer.text,
            logprobs=logprobs,
            finish_reason=stop_reason(answer.finish_reason),
            tokens=token_infos(self.codec, answer) if self.body.return_tokens else None,
        )

    def _new_logprobs(self, choice: int, delta: OutputDelta) -> CompletionLogprobs | None:
        if self.body.logprobs is None:
            return None
        return completion_logprobs(self.codec, delta.logprobs, self._offsets.setdefault(choice, TextOffsets()))


def list_prompts(body: CompletionRequest) -> list[TokensOrText]:
    """One or several, of either kind."""
    given_prompt = body.prompt
    if isinstance(given_prompt, str):
        return [given_prompt]
    tokens = tuple(token for token in given_prompt if isinstance(token, int))
    if tokens:
        return [tokens]
    return [each if isinstance(each, str) else tuple(each) for each in given_prompt if not isinstance(each, int)]


def _check_fields(body: CompletionRequest) -> None:
    body.check_stream_options()
    if body.echo and body.logprobs is not None:
        raise FieldError("echo", "echo cannot be had with logprobs: a prompt's log-probabilities are not computed")
    if given(body.best_of, body.num_answers) != body.num_answers:
        raise FieldError("best_of", f"best_of must equal n, {body.num_answers}, found {body.best_of}")
