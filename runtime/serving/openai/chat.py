"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from sparsespec.runtime.outputs import CompletionOutput, OutputDelta, RequestOutput
from sparsespec.runtime.results import TokenLogprobs
from sparsespec.runtime.serving.openai.answer_types import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessageAnswer,
)
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
from sparsespec.runtime.serving.openai.request_types import AssistantMessage, ChatRequest, PromptMessage
from sparsespec.runtime.serving.openai.sampling_fields import given
from sparsespec.runtime.serving.openai.token_answers import chat_logprobs, token_infos
from sparsespec.runtime.serving.service import Service
from sparsespec.runtime.text import ChatMessage, TextCodec


@dataclass(frozen=True)
class ChatEndpoint:
    """Answers with a service, under the name of the model that it serves."""

    service: Service
    model: str

    async def create_chat_completion(self, request: Request, body: ChatRequest) -> Response:
        """Say what comes next in a chat."""
        check_model(body.model, self.model)
        body.check_stream_options()
        messages = tuple(chat_message(message) for message in body.messages)
        params = body.sampling_params(body.token_limit, _num_alternatives(body))
        request_id: str = request.state.request_id
        exchange = Exchange(
            service=self.service,
            heading=head("chatcmpl", request_id, self.model),
            fields=body,
            requests=service_requests(request_id, [messages], params, body),
            form=ChatForm(body, self.service.codec),
        )
        return await exchange.answer(request)


@dataclass(frozen=True)
class ChatForm:
    """Writes a chat's answers."""

    body: ChatRequest
    codec: TextCodec

    @property
    def chunk_object(self) -> str:
        """Not that of a whole answer."""
        return "chat.completion.chunk"

    def opening(self) -> list[ChatChunkChoice]:
        """Who speaks."""
        delta = ChatDelta(role="assistant", content="")
        return [ChatChunkChoice(index=index, delta=delta) for index in range(self.body.num_answers)]

    def gained(self, choice: int, delta: OutputDelta) -> list[ChatChunkChoice]:
        """A chunk for what can be shown, and one for the end."""
        chunks = []
        text, logprobs = delta.text, delta.logprobs
        if text or logprobs or (self.body.return_tokens and delta.token_ids):
            chunks.append(
                ChatChunkChoice(
                    index=choice,
                    delta=ChatDelta(content=text),
                    logprobs=self._logprobs(logprobs),
                    tokens=token_infos(self.codec, delta) if self.body.return_tokens else None,
                )
            )
        if delta.finish_reason is not None:
            end = stop_reason(delta.finish_reason)
            chunks.append(ChatChunkChoice(index=choice, delta=ChatDelta(), finish_reason=end))
        return chunks

    def whole(self, heading: Heading, outputs: Sequence[RequestOutput]) -> ChatCompletion:
        """All choices of the only prompt."""
        return ChatCompletion(
            id=heading.answer_id,
            created=heading.created,
            model=heading.model,
            choices=[self._choice(answer) for output in outputs for answer in output.outputs],
            usage=usage_of(outputs),
        )

    def _choice(self, answer: CompletionOutput) -> ChatChoice:
        return ChatChoice(
            index=answer.index,
            message=ChatMessageAnswer(content=answer.text),
            logprobs=self._logprobs(answer.logprobs),
            finish_reason=stop_reason(answer.finish_reason),
            tokens=token_infos(self.codec, answer) if self.body.return_tokens else None,
        )

    def _logprobs(self, logprobs: Sequence[TokenLogprobs]) -> ChatLogprobs | None:
        return chat_logprobs(self.codec, logprobs) if self.body.logprobs else None


def chat_message(message: PromptMessage | AssistantMessage) -> ChatMessage:
    """As a chat template takes it: one text, and a system message for a developer's, which few templates know."""
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return ChatMessage(role, message.content)
    return ChatMessage(role, "\n".join(part.text for part in message.content))


def _num_alternatives(body: ChatRequest) -> int | None:
    if not body.logprobs:
        if body.top_logprobs is not None:
            raise FieldError("top_logprobs", "top_logprobs may only be given with logprobs: true")
        return None
    return given(body.top_logprobs, 0)
