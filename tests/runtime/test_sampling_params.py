"""Every limit of SamplingParams, with the value in the message."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from sparsespec.builder.errors import RequestError
from sparsespec.runtime.sampling_params import (
    MAX_LOGPROBS,
    MAX_STOP_TOKEN_IDS,
    SAMPLING_ALONE,
    LogitNeeds,
    SamplingNeeds,
    SamplingParams,
)

NOTHING = SamplingNeeds(penalties=False, probabilities=False, cuts=False, logprobs=None, early_stops=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SamplingParams(max_tokens=0), "max_tokens must be in 1..2147483647, found 0"),
        (lambda: SamplingParams(min_tokens=-1), "min_tokens must be in 0..max_tokens, found -1"),
        (lambda: SamplingParams(max_tokens=4, min_tokens=5), "min_tokens must be in 0..max_tokens, found 5"),
        (lambda: SamplingParams(temperature=-0.1), "temperature must be in 0..1000, found -0.1"),
        (lambda: SamplingParams(top_k=-1), "top_k must be in 0..2147483647 (0: all), found -1"),
        (lambda: SamplingParams(top_p=0.0), "top_p must be in (0, 1], found 0.0"),
        (lambda: SamplingParams(top_p=1.1), "top_p must be in (0, 1], found 1.1"),
        (lambda: SamplingParams(min_p=-0.1), "min_p must be in [0, 1], found -0.1"),
        (lambda: SamplingParams(min_p=1.1), "min_p must be in [0, 1], found 1.1"),
        (lambda: SamplingParams(repetition_penalty=0.0), "repetition_penalty must be in (0, 2], found 0.0"),
        (lambda: SamplingParams(repetition_penalty=2.1), "repetition_penalty must be in (0, 2], found 2.1"),
        (lambda: SamplingParams(presence_penalty=-2.1), "presence_penalty must be in [-2, 2], found -2.1"),
        (lambda: SamplingParams(presence_penalty=2.1), "presence_penalty must be in [-2, 2], found 2.1"),
        (lambda: SamplingParams(frequency_penalty=-2.1), "frequency_penalty must be in [-2, 2], found -2.1"),
        (lambda: SamplingParams(frequency_penalty=2.1), "frequency_penalty must be in [-2, 2], found 2.1"),
        (lambda: SamplingParams(n=0), "n must be in 1..1024, found 0"),
        (
            lambda: SamplingParams(stop=("a", "")),
            "stop must be at most 64 texts of 1..1024 characters, found ('a', '')",
        ),
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


@pytest.mark.parametrize(
    "name", ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(RequestError, match=f"{name} must be in .*, found {value!r}"):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("stop", [("a",) * 65, ("a" * 1025,)])
def test_too_much_to_look_for(stop: tuple[str, ...]) -> None:
    SamplingParams(stop=tuple(one[:1024] for one in stop[:64]))
    with pytest.raises(RequestError, match=r"stop must be at most 64 texts of 1\.\.1024 characters, found \('a"):
        SamplingParams(stop=stop)


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
        min_p=1.0,
        repetition_penalty=2.0,
        presence_penalty=2.0,
        frequency_penalty=2.0,
        seed=2**63 - 1,
        logprobs=MAX_LOGPROBS,
    )
    SamplingParams(top_k=1, top_p=1e-9, seed=0, logprobs=0)
    SamplingParams(min_p=0.0, repetition_penalty=1e-9, presence_penalty=-2.0, frequency_penalty=-2.0)


@pytest.mark.parametrize(
    ("params", "needs"),
    [
        (SamplingParams(temperature=0.0), NOTHING),
        (
            SamplingParams(temperature=0.0, top_k=3, top_p=0.5, min_p=0.5),
            NOTHING,
        ),
        (
            SamplingParams(temperature=0.0, presence_penalty=-1.0),
            replace(NOTHING, penalties=True),
        ),
        (
            SamplingParams(temperature=0.0, frequency_penalty=1.0),
            replace(NOTHING, penalties=True),
        ),
        (SamplingParams(repetition_penalty=0.5), replace(NOTHING, penalties=True, probabilities=True)),
        (SamplingParams(min_p=0.1), replace(NOTHING, probabilities=True, cuts=True)),
        (SamplingParams(temperature=0.0, max_tokens=9, min_tokens=1), replace(NOTHING, early_stops=True)),
        (SamplingParams(top_k=1, logprobs=0), replace(NOTHING, probabilities=True, cuts=True, logprobs=0)),
    ],
)
def test_only_what_changes_the_answer_is_computed(params: SamplingParams, needs: SamplingNeeds) -> None:
    assert params.needs == needs


def test_what_a_step_does_with_logits_is_what_any_of_its_requests_needs() -> None:
    told, penalised = SamplingParams(logprobs=0).needs, SamplingParams(presence_penalty=0.1).needs
    early = SamplingParams(min_tokens=3).needs
    assert LogitNeeds.of([SamplingParams(top_k=3).needs] * 2) == SAMPLING_ALONE
    assert LogitNeeds.of([told, SamplingParams().needs]) == LogitNeeds(logprobs=True)
    assert LogitNeeds.of([told, penalised, early]) == LogitNeeds(penalties=True, early_stops=True, logprobs=True)
