"""Prompts as callers pass them, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from sparsespec.builder.errors import RequestError
from sparsespec.runtime.prompt_input import Prompt, list_prompts, read_prompt
from sparsespec.runtime.text import ChatMessage
from tiny_llm import tiny_engine


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ((1, 2, 3), [[1, 2, 3]]),
        ([[1], (2, 3)], [[1], (2, 3)]),
        (["one", [2, 3]], ["one", [2, 3]]),
        ([], []),
    ],
)
def test_one_or_several(given: list[str], expected: list[object]) -> None:
    assert list_prompts(given) == expected


def test_token_ids_of_any_integer_type() -> None:
    prompt = read_prompt(tiny_engine().codec, np.array([3, 4], dtype=np.int32))  # type: ignore[arg-type]
    assert prompt.token_ids == (3, 4)
    assert [type(token) for token in prompt.token_ids] == [int, int]


def test_text_keeps_its_text() -> None:
    codec = tiny_engine().codec
    prompt = read_prompt(codec, "One pillar.")
    assert prompt.text == "One pillar."
    assert prompt.token_ids == tuple(codec.encode("One pillar."))


@pytest.mark.parametrize("given", [None, 7, b"bytes", {"prompt": "a"}, [1, 2.5], [1, None], [True], ["a", 1], [[1]]])
def test_anything_else_is_refused(given: object) -> None:
    with pytest.raises(RequestError, match="must be"):
        read_prompt(tiny_engine().codec, given)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [None, 7, b"bytes", {"prompt": "a"}])
def test_no_list_of_prompts(given: object) -> None:
    with pytest.raises(RequestError, match="must be"):
        list_prompts(given)  # type: ignore[arg-type]


def test_a_chat_is_one_prompt_and_goes_through_the_template() -> None:
    codec = tiny_engine().codec
    chat = [ChatMessage("user", "hi"), ChatMessage("assistant", "ho"), ChatMessage("user", "he")]
    assert list_prompts(chat) == [chat]
    assert codec.decode(read_prompt(codec, chat).token_ids) == "hihohe"
    assert read_prompt(codec, chat).token_ids == tuple(codec.encode_chat(chat))


def test_what_was_read_is_not_read_again() -> None:
    prompt = Prompt("text", (1, 2))
    assert read_prompt(tiny_engine().codec, prompt) is prompt
    assert list_prompts(prompt) == [prompt]


def test_a_chat_of_messages_and_more_is_refused() -> None:
    with pytest.raises(RequestError, match="token id must be an integer"):
        read_prompt(tiny_engine().codec, [ChatMessage("user", "hi"), 3])  # type: ignore[list-item]
