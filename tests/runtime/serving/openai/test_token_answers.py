"""Single tokens in answers: parts of characters, special tokens, what is out of reach."""

from __future__ import annotations

import math

import pytest

from fake_service import CODEC, FakeDelta, output_of
from sparsespec.runtime.results import TokenLogprobs
from sparsespec.runtime.serving.openai.token_answers import (
    TextOffsets,
    chat_logprobs,
    completion_logprobs,
    token_infos,
    token_name,
)
from sparsespec.runtime.verification import Verification

E_ACUTE = tuple(CODEC.encode("é"))  # two tokens


@pytest.mark.parametrize(
    ("token", "name"),
    [(CODEC.encode("a")[0], "a"), (CODEC.encode("th")[0], "th"), (E_ACUTE[0], "bytes:\\xc3"), (0, "<|eos|>")],
)
def test_names(token: int, name: str) -> None:
    assert token_name(CODEC, token) == name


def test_infos_spell_the_text() -> None:
    tokens = CODEC.encode("th é!")
    infos = token_infos(CODEC, FakeDelta("", tuple(tokens), accepted=(True, True, False, False, False)))  # type: ignore[arg-type]
    assert b"".join(bytes(info.bytes) for info in infos).decode() == "th é!"
    assert [info.accepted_draft for info in infos] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("parts", "offsets"),
    [
        ([b"ab", b"c", b""], [0, 2, 3]),
        (["é".encode()[:1], "é".encode()[1:], b"x"], [0, 0, 1]),
        ([b"\xa9", b"x"], [0, 1]),  # broken: one U+FFFD
        ([b"\xe2\x82", b"x", b"y"], [0, 0, 2]),
    ],
)
def test_offsets_count_characters(parts: list[bytes], offsets: list[int]) -> None:
    counter = TextOffsets()
    assert [counter.push(part) for part in parts] == offsets


def test_what_is_out_of_reach_is_a_number() -> None:
    told = TokenLogprobs(5, -0.5, ((5, -0.5), (6, -math.inf)))
    (found,) = chat_logprobs(CODEC, [told]).content
    assert [top.logprob for top in found.top_logprobs] == [-0.5, -9999.0]


def test_the_tokens_own_is_among_a_completions_alternatives() -> None:
    (a, b, c) = CODEC.encode("abc")
    told = TokenLogprobs(c, -3.0, ((a, -1.0), (b, -2.0)))
    found = completion_logprobs(CODEC, [told], TextOffsets())
    assert found.top_logprobs == [{"a": -1.0, "b": -2.0, "c": -3.0}]
    none_asked = completion_logprobs(CODEC, [TokenLogprobs(c, -3.0, ())], TextOffsets())
    assert (none_asked.tokens, none_asked.top_logprobs) == (["c"], None)


def test_drafts_beyond_the_end_are_not_tokens() -> None:
    checks = (
        Verification(1, 3, num_drafts=4, num_accepted=2, draft_kv_tokens=0, verify_kv_tokens=0, context=0),
        Verification(4, 2, num_drafts=4, num_accepted=4, draft_kv_tokens=0, verify_kv_tokens=0, context=0),
    )
    answer = output_of("x", token_ids=(5,) * 6, checks=checks).outputs[0]
    accepted = [token.accepted_draft for token in token_infos(CODEC, answer)]
    assert accepted == [False, True, True, False, True, True]
