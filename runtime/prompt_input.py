"""What callers may pass as prompts: a text or token ids, one or several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from sparsespec.builder.errors import RequestError
from sparsespec.runtime.text import TextCodec

PromptInput = str | Sequence[int]


@dataclass(frozen=True)
class Prompt:
    """A prompt in tokens, and the text it came from if it was one."""

    text: str | None
    token_ids: tuple[int, ...]


def read_prompt(codec: TextCodec, given: PromptInput) -> Prompt:
    """Encode a text, or check token ids. Raises RequestError for anything else."""
    if isinstance(given, str):
        return Prompt(given, tuple(codec.encode(given)))
    return Prompt(None, tuple(_token_id(value) for value in _elements(given)))


def list_prompts(given: PromptInput | Sequence[PromptInput]) -> list[PromptInput]:
    """One prompt or several, as a list. A list of integers is one prompt."""
    if isinstance(given, str):
        return [given]
    prompts: list[Any] = list(_elements(given))
    if prompts and all(isinstance(prompt, Integral) for prompt in prompts):
        return [prompts]
    return prompts


def _elements(given: object) -> Iterable[object]:
    if isinstance(given, bytes | dict) or not isinstance(given, Iterable):
        raise RequestError(f"a prompt must be a text or a list of token ids, found {given!r:.80}")
    return given


def _token_id(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise RequestError(f"a token id must be an integer, found {value!r:.80}")
    return int(value)
