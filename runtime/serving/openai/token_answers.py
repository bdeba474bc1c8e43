"""What answers tell of single tokens: their text, their log-probabilities, who made them. No torch."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from sparsespec.runtime.outputs import CompletionOutput, OutputDelta
from sparsespec.runtime.results import TokenLogprobs
from sparsespec.runtime.serving.openai.answer_types import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    TokenInfo,
    TopLogprob,
)

_LEAST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's number for what is out of reach


class TokenNames(Protocol):
    """Of a TextCodec."""

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 of a token; may be a part of a character, empty for a special token."""

    def token_text(self, token_id: int) -> str:
        """For people to read; a special token's name."""


class TextOffsets:
    """Characters of an answer's text before each of its tokens, as they come in. A broken one counts as U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._length = 0

    def push(self, token: bytes) -> int:
        """Where the next token begins."""
        start = self._length
        self._length += len(self._decoder.decode(token))
        return start


def token_name(codec: TokenNames, token_id: int) -> str:
    """A token as text; `bytes:\\xe2\\x82` where it is a part of a character, as OpenAI writes it."""
    data = codec.token_bytes(token_id)
    try:
        return data.decode() or codec.token_text(token_id)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def token_infos(codec: TokenNames, gained: OutputDelta | CompletionOutput) -> list[TokenInfo]:
    """Of what an answer gained, or of a whole one."""
    return [
        TokenInfo(token=token_name(codec, token), bytes=list(codec.token_bytes(token)), accepted_draft=is_draft)
        for token, is_draft in zip(gained.token_ids, gained.accepted, strict=True)
    ]


def chat_logprobs(codec: TokenNames, logprobs: Sequence[TokenLogprobs]) -> ChatLogprobs:
    """Of the tokens of a chat's answer, or of a part of it."""
    return ChatLogprobs(content=[_chat_logprob(codec, each) for each in logprobs])


def completion_logprobs(
    codec: TokenNames, logprobs: Sequence[TokenLogprobs], offsets: TextOffsets
) -> CompletionLogprobs:
    """Of the next tokens of a completion."""
    return CompletionLogprobs(
        tokens=[token_name(codec, each.token_id) for each in logprobs],
        token_logprobs=[_finite(each.logprob) for each in logprobs],
        top_logprobs=[_top(codec, each) for each in logprobs] if any(each.top for each in logprobs) else None,
        text_offset=[offsets.push(codec.token_bytes(each.token_id)) for each in logprobs],
    )


def _chat_logprob(codec: TokenNames, told: TokenLogprobs) -> ChatTokenLogprob:
    own = _top_logprob(codec, told.token_id, told.logprob)
    top = [_top_logprob(codec, token, logprob) for token, logprob in told.top]
    return ChatTokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)


def _top_logprob(codec: TokenNames, token_id: int, logprob: float) -> TopLogprob:
    data = codec.token_bytes(token_id)
    return TopLogprob(token=token_name(codec, token_id), logprob=_finite(logprob), bytes=list(data))


def _top(codec: TokenNames, told: TokenLogprobs) -> dict[str, float]:
    """By name: of tokens that are written alike the likeliest stands."""
    named: dict[str, float] = {}
    for token, logprob in (*told.top, (told.token_id, told.logprob)):
        named.setdefault(token_name(codec, token), _finite(logprob))
    return named


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)
