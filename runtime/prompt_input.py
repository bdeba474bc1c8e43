"""What callers may pass as prompts: a text, a chat or token ids, one or several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from sparsespec.builder.config_io import shown
from sparsespec.builder.errors import RequestError
from sparsespec.runtime.text import ChatMessage, TextCodec


@dataclass(frozen=True)
class Prompt:
    """A prompt in tokens, and the text it came from if it was one."""

    text: str | None
    token_ids: tuple[int, ...]


PromptInput = str | Sequence[int] | Sequence[ChatMessage] | Prompt  # of messages: a chat, for the model's template


def read_prompt(codec: TextCodec, given: PromptInput) -> Prompt:
    """Encode a text or a chat, or check token ids. Raises RequestError for anything else."""
    if isinstance(given, Prompt):
        return given
    if isinstance(given, str):
        return Prompt(given, tuple(codec.encode(given)))
    values = list(_elements(given))
    messages = [value for value in values if isinstance(value, ChatMessage)]
    if messages and len(messages) == len(values):
        return Prompt(None, tuple(codec.encode_chat(messages)))
    return Prompt(None, tuple(_token_id(value) for value in values))


def list_prompts(given: PromptInput | Sequence[PromptInput]) -> list[PromptInput]:
    """One prompt or several, as a list. A list of integers is one prompt, and so is one of messages."""
    if isinstance(given, str | range | Prompt):
        return [given]
    prompts: list[Any] = list(_elements(given))
    if prompts and any(all(isinstance(prompt, kind) for prompt in prompts) for kind in (Integral, ChatMessage)):
        return [prompts]
    return prompts


def _elements(given: object) -> Iterable[object]:
    # What has no order of its own is no list, and an iterator may be endless.
    kinds = (bytes, bytearray, memoryview, Mapping, Set, Iterator)
    try:
        if not isinstance(given, kinds):
            return iter(given)  # type: ignore[call-overload, no-any-return]
    except TypeError:  # no list, or an array without a dimension
        pass
    raise RequestError(f"a prompt must be a text or a list of token ids, found {shown(given)}")


def _token_id(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise RequestError(f"a token id must be an integer, found {shown(value)}")
    return int(value)
