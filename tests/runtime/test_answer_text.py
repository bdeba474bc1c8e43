"""Text that is decoded late: the same, whenever and in whatever order its parts are read."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespec.runtime.answers import Answer, AnswerText
from sparsespec.runtime.outputs import OutputDelta
from sparsespec.runtime.request import NO_DRAFTS, Request, RequestSpec
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.text import TextCodec
from tiny_models import tiny_tokenizer

CODEC = TextCodec(tiny_tokenizer(260))


def growing(stop: tuple[str, ...] = (), min_tokens: int = 0, codec: TextCodec = CODEC) -> Answer:
    params = SamplingParams(max_tokens=100, min_tokens=min_tokens, stop=stop)
    request = Request(RequestSpec(0, (1,), params, 0, (), 100, NO_DRAFTS))
    return Answer(7, 0, request, AnswerText(request, codec.stream(stop)))


def grow(answer: Answer, tokens: list[int], ends: bool = False) -> OutputDelta:
    answer.request.output_token_ids += tokens
    if ends:
        answer.request.finish("length")
    return answer.grow(tuple(tokens))


def parts_of(text: str, sizes: list[int]) -> list[list[int]]:
    tokens, parts = CODEC.encode(text), []
    for size in sizes:
        parts.append(tokens[:size])
        tokens = tokens[size:]
    return [*parts, tokens]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.sampled_from(((), ("ab€",))),
    st.text("ab€", max_size=12),
    st.lists(st.integers(0, 5), max_size=6),
    st.randoms(use_true_random=False),
)
def test_parts_may_be_read_in_any_order(
    stop: tuple[str, ...], text: str, sizes: list[int], random: random.Random
) -> None:
    parts = parts_of(text, sizes)
    now, later = growing(stop), growing(stop)
    expected = [grow(now, part, ends=part is parts[-1]).text for part in parts]
    deltas = [grow(later, part, ends=part is parts[-1]) for part in parts]
    order = list(range(len(deltas)))
    random.shuffle(order)
    found = {index: deltas[index].text for index in order}
    assert [found[index] for index in range(len(deltas))] == expected
    assert "".join(expected) == later.text.so_far() == now.text.so_far()


def test_a_stop_text_cuts_its_delta_and_silences_later_ones() -> None:
    answer = growing(("cd",))
    deltas = [grow(answer, CODEC.encode(text)) for text in ("ab", "xcdy", "zz")]
    first, second, third = (delta.up_to_stop() for delta in deltas)
    assert first is deltas[0]
    assert second is not None
    assert (second.text, second.token_ids, second.finish_reason) == ("x", tuple(CODEC.encode("xcd")), "stop")
    assert third is None
    assert deltas[0].up_to_stop() is deltas[0]
    assert answer.text.stop is not None
    assert (answer.text.stop.text, answer.text.stop.num_tokens) == ("cd", 5)
    assert (deltas[2].text, answer.text.so_far()) == ("", "abx")


def test_a_stop_text_counts_from_min_tokens_on() -> None:
    """The token in that place may complete one."""
    for min_tokens, stops in ((3, True), (4, True), (5, False)):
        answer = growing(("cd",), min_tokens)
        deltas = [grow(answer, CODEC.encode(text)).up_to_stop() for text in ("ab", "cd")]
        assert (deltas[-1].finish_reason == "stop") == stops  # type: ignore[union-attr]


def test_a_stop_text_comes_before_an_end_that_is_known_earlier() -> None:
    answer = growing(("b",))
    early, last = grow(answer, CODEC.encode("abc")), grow(answer, CODEC.encode("def"), ends=True)
    found = early.up_to_stop()
    assert found is not None
    assert (found.text, found.finish_reason, last.up_to_stop()) == ("a", "stop", None)


@pytest.mark.parametrize("stop", [(), ("a€b",)])
def test_what_is_held_back_comes_out_when_the_answer_ends(stop: tuple[str, ...]) -> None:
    incomplete = CODEC.encode("a€")[:-1]
    cancelled, ended = growing(stop), growing(stop)
    grow(cancelled, incomplete)
    assert cancelled.text.so_far() == ("" if stop else "a")
    cancelled.request.finish("cancelled")
    assert cancelled.text.so_far() == grow(ended, incomplete, ends=True).text == "a\N{REPLACEMENT CHARACTER}" * 1


# Bytes of characters, so that some are broken or never become complete, and letters.
TOKENS = CODEC.encode("ab€é") + CODEC.encode("😀")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.sampled_from(TOKENS), max_size=4), min_size=1, max_size=6), st.integers(0, 6))
def test_an_answer_that_has_ended_is_read_at_once_or_in_parts(parts: list[list[int]], num_read: int) -> None:
    answer, expected = growing(), growing()
    deltas = [grow(answer, part, ends=part is parts[-1]) for part in parts]
    texts = [grow(expected, part, ends=part is parts[-1]).text for part in parts]
    assert [delta.text for delta in deltas[:num_read]] == texts[:num_read]
    assert answer.text.so_far() == expected.text.so_far() == "".join(texts)
    assert [delta.text for delta in deltas] == texts


def test_what_nobody_streamed_is_decoded_together() -> None:
    class Counted(TextCodec):
        calls = 0

        def decode(self, token_ids: Sequence[int]) -> str:
            self.calls += 1
            return super().decode(token_ids)

    codec = Counted(tiny_tokenizer(260))
    answer = growing(codec=codec)
    for token in CODEC.encode("abc" * 500):
        grow(answer, [token])
    answer.request.finish("length")
    assert answer.text.so_far() == answer.text.so_far() == "abc" * 500
    assert codec.calls == 1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text("ab é😀", min_size=1, max_size=40), st.lists(st.integers(0, 6), max_size=12), st.data())
def test_deltas_put_together_add_what_they_add_alone(text: str, sizes: list[int], data: st.DataObject) -> None:
    parts = parts_of(text, sizes)
    alone, together = growing(), growing()
    expected = [grow(alone, part, ends=part is parts[-1]) for part in parts]
    deltas = [grow(together, part, ends=part is parts[-1]) for part in parts]
    found: list[OutputDelta] = []
    for delta in deltas:
        if found and data.draw(st.booleans()):
            found[-1] = found[-1].with_next(delta)
        else:
            found.append(delta)
    assert sum(delta.num_parts for delta in found) == len(parts)
    assert "".join(delta.text for delta in found) == "".join(delta.text for delta in expected) == together.text.so_far()
    assert [token for delta in found for token in delta.token_ids] == [token for part in parts for token in part]
    assert found[-1].finish_reason == "length"
