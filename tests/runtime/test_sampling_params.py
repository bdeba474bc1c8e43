"""Every limit of SamplingParams, with the value in the message."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from sparsespec.builder.errors import RequestError
from sparsespec.runtime.sampling_params import MAX_LOGPROBS, MAX_STOP_TOKEN_IDS, SamplingParams


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SamplingParams(max_tokens=0), "max_tokens must be in 1..2147483647, found 0"),
        (lambda: SamplingParams(min_tokens=-1), "min_tokens must be in 0..max_tokens, found -1"),
        (lambda: SamplingParams(max_tokens=4, min_tokens=5), "min_tokens must be in 0..max_tokens, found 5"),
        (lambda: SamplingParams(temperature=-0.1), "temperature must be in 0..1000, found -0.1"),
        (lambda: SamplingParams(temperature=math.nan), "temperature must be in 0..1000, found nan"),
        (lambda: SamplingParams(temperature=math.inf), "temperature must be in 0..1000, found inf"),
        (lambda: SamplingParams(top_k=-1), "top_k must be in 0..2147483647 (0: all), found -1"),
        (lambda: SamplingParams(top_p=0.0), "top_p must be in (0, 1], found 0.0"),
        (lambda: SamplingParams(top_p=1.1), "top_p must be in (0, 1], found 1.1"),
        (lambda: SamplingParams(top_p=math.nan), "top_p must be in (0, 1], found nan"),
        (lambda: SamplingParams(n=0), "n must be in 1..1024, found 0"),
        (lambda: SamplingParams(stop=("a", "")), "stop must be non-empty texts, found ('a', '')"),
        (lambda: SamplingParams(logprobs=-1), "logprobs must be in 0..20, found -1"),
        (lambda: SamplingParams(logprobs=21), "logprobs must be in 0..20, found 21"),
        (lambda: SamplingParams(seed=-1), "seed must be in 0..2^63 - 1, found -1"),
        (lambda: SamplingParams(seed=2**63), f"seed must be in 0..2^63 - 1, found {2**63}"),
    ],
)
def test_errors_name_value_and_limit(make: Callable[[], SamplingParams], message: str) -> None:
    with pytest.raises(RequestError) as error:
        make()
    assert str(error.value) == message


def test_too_many_stop_tokens() -> None:
    SamplingParams(stop_token_ids=tuple(range(MAX_STOP_TOKEN_IDS)))
    with pytest.raises(RequestError, match=r"stop_token_ids must be at most 16 tokens, found \(0, 1, .*, 16\)"):
        SamplingParams(stop_token_ids=tuple(range(MAX_STOP_TOKEN_IDS + 1)))


def test_one_stop_text_is_not_taken_letter_by_letter() -> None:
    """stop="END" is what callers of vLLM write: one stop text, or an error, but never "E", "N" and "D"."""
    try:
        params = SamplingParams(stop="END")  # type: ignore[arg-type]
    except RequestError:
        return
    assert params.stop == ("END",)


def test_lists_and_none_are_taken_as_callers_of_vllm_pass_them() -> None:
    params = SamplingParams(stop=["a", "b"], stop_token_ids=None)  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids) == (("a", "b"), ())


@pytest.mark.parametrize("make", [lambda: SamplingParams(stop=5), lambda: SamplingParams(stop_token_ids=("x",))])
def test_stops_of_another_type_are_refused(make: Callable[[], SamplingParams]) -> None:
    with pytest.raises(RequestError, match=r"stop.*expected"):
        make()


def test_a_fraction_of_a_token_is_refused() -> None:
    """Page counts would become fractions, which ends the step loop for every request."""
    with pytest.raises(RequestError, match=r"5\.5"):
        SamplingParams(max_tokens=5.5)  # type: ignore[arg-type]


def test_the_limits_themselves_are_allowed() -> None:
    SamplingParams(
        max_tokens=1,
        min_tokens=1,
        temperature=0.0,
        top_p=1.0,
        seed=2**63 - 1,
        logprobs=MAX_LOGPROBS,
    )
    SamplingParams(top_k=1, top_p=1e-9, seed=0, logprobs=0)
