"""Parameters and prompts of any type: refused with a clear error, and no request beside them is harmed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from itertools import count
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile_campaign import campaign, result_or_error
from hostile_mutations import ODD_FLOATS, ODD_INTEGERS, ODD_TEXTS, odd_value
from sparsespec.builder.errors import RequestError
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.sampling_params import SamplingParams
from tiny_llm import assert_all_pages_free, greedy, random_prompts, tiny_engine

FIELDS = tuple(field.name for field in fields(SamplingParams))


def test_sampling_params() -> None:
    def attempt(random: Random) -> None:
        values = {name: _odd_object(random) for name in random.sample(FIELDS, random.choice((1, 1, 2, 4)))}
        params = result_or_error(lambda: SamplingParams(**values))
        assert isinstance(params, SamplingParams | RequestError)
        if isinstance(params, SamplingParams):
            assert isinstance(params.needs.probabilities, bool)

    campaign("sampling parameters", attempt)


@given(name=st.sampled_from(FIELDS), value=st.from_type(object) | st.floats() | st.integers() | st.lists(st.text()))
@settings(max_examples=300, derandomize=True, print_blob=True, deadline=None, database=None)
def test_sampling_params_of_any_type(name: str, value: object) -> None:
    params = result_or_error(lambda: SamplingParams(**{name: value}))  # type: ignore[arg-type]
    assert isinstance(params, SamplingParams | RequestError)


def test_prompts() -> None:
    llm = LLM(tiny_engine())

    def attempt(random: Random) -> None:
        prompt: Any = _odd_prompt(random)
        request_id = result_or_error(lambda: llm.add_request(prompt, greedy(4)))
        assert isinstance(request_id, int | RequestError)
        if isinstance(request_id, int):
            llm.cancel(request_id)
            llm.take_output(request_id)

    campaign("prompts", attempt)
    assert_all_pages_free(llm)


def test_requests_beside_a_running_one() -> None:
    """Hostile requests come in at any step; those that are taken run along and are cancelled."""
    prompt = random_prompts((40,))[0]
    expected = LLM(tiny_engine()).generate([prompt], greedy(16))[0].outputs[0].token_ids
    llm = LLM(tiny_engine())

    def attempt(random: Random) -> None:
        running = llm.add_request(prompt, greedy(16))
        taken, hostile_steps = [], [random.randrange(12) for _ in range(3)]
        for step in count():
            for _ in range(hostile_steps.count(step)):
                outcome = _submit(llm, random)
                taken += [outcome] if isinstance(outcome, int) else []
            if not llm.is_running(running):
                break
            llm.step()
        for request_id in taken:
            llm.cancel(request_id)
            llm.take_output(request_id)
        assert llm.take_output(running).outputs[0].token_ids == expected

    campaign("requests beside a running one", attempt)
    assert_all_pages_free(llm)


@pytest.mark.parametrize("given", [count(), iter([1, 2]), {1, 2}, bytearray(b"ab"), memoryview(b"ab"), map(int, "12")])
def test_what_is_no_list_is_no_prompt(given: Any) -> None:
    llm = LLM(tiny_engine())
    for call in (llm.add_request, llm.generate):
        with pytest.raises(RequestError, match="a prompt must be a text or a list of token ids"):
            call(given)


@pytest.mark.parametrize("given", [range(10**12), range(2**70)])
def test_a_range_without_end_takes_no_memory(given: Any) -> None:
    llm = LLM(tiny_engine())
    for call in (llm.add_request, llm.generate):
        with pytest.raises(RequestError, match="over max_seq_len 256"):
            call(given)


@pytest.mark.parametrize("value", [0, False, 0.0, {}, np.array([1, 2])])
def test_stops_that_count_as_false_are_not_ignored(value: Any) -> None:
    for name in ("stop", "stop_token_ids"):
        with pytest.raises(RequestError, match=f"{name}: expected a list"):
            SamplingParams(**{name: value})


def _submit(llm: LLM, random: Random) -> object:
    prompt: Any = _odd_prompt(random) if random.random() < 0.5 else random_prompts((9,), seed=random.randrange(99))[0]
    values = {name: _odd_object(random) for name in random.sample(FIELDS, 2)}
    params = result_or_error(lambda: SamplingParams(**{"max_tokens": 6, **values}))
    chosen: Any = params if isinstance(params, SamplingParams) and params.n < 3 else greedy(3)
    if random.random() < 0.1:
        chosen = _odd_object(random)
    return result_or_error(lambda: llm.add_request(prompt, chosen))


def _odd_object(random: Random) -> Any:
    choices: tuple[Callable[[], Any], ...] = (
        lambda: odd_value(random),
        lambda: odd_value(random),
        lambda: random.choice(ODD_INTEGERS),
        lambda: random.choice(ODD_FLOATS),
        random.random,
        lambda: random.randrange(20),
        lambda: 10 ** random.choice((400, 5000)),
        lambda: [random.choice(ODD_TEXTS) for _ in range(random.randrange(3))],
        lambda: [random.choice((*ODD_INTEGERS, 3, 5)) for _ in range(random.choice((1, 2, 17, 1000)))],
        lambda: (random.choice(ODD_TEXTS),),
        lambda: random.choice((b"stop", bytearray(3), {1, 2}, object(), int, len, Fraction(1, 2), 1j, range(5), True)),
        lambda: random.choice((np.int64(3), np.float32(0.5), np.array([1, 2]), np.array(1), np.bool_(True))),
        lambda: random.choice((torch.tensor(1), torch.tensor([1, 2]), torch.tensor([]))),
    )
    return random.choice(choices)()


def _odd_prompt(random: Random) -> Any:
    choices: tuple[Callable[[], Any], ...] = (
        lambda: _odd_object(random),
        lambda: random.choice(ODD_TEXTS) * random.choice((1, 3, 1000)),
        lambda: "".join(chr(random.randrange(0x110000)) for _ in range(random.randrange(40))),
        lambda: [random.choice((*ODD_INTEGERS, 5, 100, 127, 128, 10**5000)) for _ in range(random.randrange(4))],
        lambda: [_odd_object(random) for _ in range(3)],
        lambda: [5] * random.choice((0, 1, 255, 256, 257, 10_000)),
        lambda: np.array(random.choices(range(128), k=5), random.choice((np.int8, np.uint64, np.float64, np.bool_))),
        lambda: random.choice((range(3, 9), range(10**12), count(), iter("ab"), {"prompt": "a"}, [[1, 2]], [None])),
    )
    return random.choice(choices)()
