"""Tensors as requests of the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from fake_triton import FakeRequest, FakeTensor
from sparsespec.builder.errors import RequestError
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.serving.triton.request_reader import Envelope, TextRequest, read_request
from sparsespec.runtime.serving.triton.tensors import Inputs
from sparsespec.runtime.text import ChatMessage

Values = Mapping[str, Sequence[object]]
ENVELOPE = Envelope("r1", None, exclude_input_in_output=True)


def read(values: Values, envelope: Envelope = ENVELOPE) -> TextRequest:
    return read_request(Inputs(FakeRequest(values).inputs()), envelope)


def params(values: Values) -> SamplingParams:
    return read({"text_input": ["a"], **values}).service.params


def test_a_request_of_text_alone_is_greedy() -> None:
    request = read({"text_input": ["häuser"]})
    assert request.service.prompt == "häuser"
    assert request.service.params == SamplingParams(temperature=0.0)
    assert (request.stream, request.text_before, request.service.timeout_s) == (False, "", None)


def test_every_tensor_of_sampling_is_taken() -> None:
    values: dict[str, list[Any]] = {
        "max_tokens": [9],
        "min_tokens": [2],
        "temperature": [0.7],
        "top_k": [5],
        "top_p": [0.9],
        "min_p": [0.1],
        "repetition_penalty": [1.1],
        "presence_penalty": [0.3],
        "frequency_penalty": [-0.2],
        "seed": [11],
        "stop_words": ["x", "", "y"],
        "stop_token_ids": [7, 8],
        "ignore_eos": [True],
        "num_return_sequences": [3],
        "return_log_probs": [True],
        "speculate": [False],
    }
    assert params(values) == SamplingParams(
        max_tokens=9,
        min_tokens=2,
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.3,
        frequency_penalty=-0.2,
        seed=11,
        stop=("x", "y"),
        stop_token_ids=(7, 8),
        ignore_eos=True,
        n=3,
        logprobs=0,
        speculate=False,
    )


@pytest.mark.parametrize(
    ("values", "temperature"),
    [({}, 0.0), ({"seed": [1]}, 0.0), ({"top_p": [0.5]}, 1.0), ({"top_k": [3]}, 1.0), ({"temperature": [0.5]}, 0.5)],
)
def test_only_a_cut_or_a_temperature_asks_for_sampling(values: Values, temperature: float) -> None:
    assert params(values).temperature == temperature


@pytest.mark.parametrize(
    ("values", "stop_token_ids", "ignore_eos"),
    [({"end_id": [9]}, (9,), True), ({"end_id": [-1]}, (), True), ({}, (), False)],
)
def test_end_id_stands_in_for_the_models_own_ends(
    values: Values, stop_token_ids: tuple[int, ...], ignore_eos: bool
) -> None:
    assert (params(values).stop_token_ids, params(values).ignore_eos) == (stop_token_ids, ignore_eos)


def test_older_clients_seeds_and_uncut_distributions_are_understood() -> None:
    assert params({"random_seed": [4], "top_p": [0.0]}) == SamplingParams(seed=4, temperature=1.0, top_p=1.0)


def test_prompts_may_be_chats_and_token_ids() -> None:
    chat = read({"messages": ['[{"role": "user", "content": "hi"}]']})
    assert chat.service.prompt == (ChatMessage("user", "hi"),)
    assert read({"input_ids": [4, 5, 6]}).service.prompt == (4, 5, 6)


def test_the_prompt_goes_before_answers_that_are_not_streamed() -> None:
    included = Envelope("r1", None, exclude_input_in_output=False)
    assert read({"text_input": ["ab"]}, included).text_before == "ab"
    assert read({"text_input": ["ab"], "stream": [True]}, included).text_before == ""
    assert read({"text_input": ["ab"], "exclude_input_in_output": [True]}, included).text_before == ""
    assert read({"text_input": ["ab"], "exclude_input_in_output": [False]}).text_before == "ab"


@pytest.mark.parametrize(
    ("own", "tensor", "expected"), [(None, [2.5], 2.5), (1.0, [2.5], 1.0), (4.0, [2.5], 2.5), (4.0, None, 4.0)]
)
def test_the_shorter_time_limit_counts(own: float | None, tensor: list[float] | None, expected: float) -> None:
    values: dict[str, list[Any]] = {"text_input": ["a"]} | ({} if tensor is None else {"timeout_s": tensor})
    assert read(values, Envelope("r1", own, exclude_input_in_output=True)).service.timeout_s == expected


def test_what_asks_for_nothing_is_taken() -> None:
    values: dict[str, list[Any]] = {
        "bad_words": [""],
        "beam_width": [1],
        "num_draft_tokens": [0],
        "use_draft_logits": [False],
        "return_context_logits": [False],
        "return_generation_logits": [False],
        "decoder_text_input": [""],
        "embedding_bias_words": [""],
        "guided_decoding_guide_type": [""],
        "guided_decoding_guide": [""],
    }
    assert params(values) == SamplingParams(temperature=0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "expected one of text_input, messages, input_ids, found none"),
        ({"text_input": ["a"], "input_ids": [1]}, "found text_input and input_ids"),
        ({"text_input": [""]}, "text_input must not be empty"),
        ({"text_input": [b"\xff"]}, "text_input must be UTF-8"),
        ({"text_input": ["a", "b"]}, r"text_input must be one value, found shape \[1, 2\]"),
        ({"messages": ["[[["]}, "messages must be JSON"),
        ({"messages": ["[" * 100_000]}, "messages must be JSON"),
        ({"messages": ["{}"]}, "messages must be a list of objects, found {}"),
        ({"messages": ["[]"]}, r"messages must be a list of objects, found \[\]"),
        ({"messages": ['[{"role": "user"}]']}, r"messages\[0\]: missing key 'content'"),
        ({"messages": ['[{"role": "user", "content": 5}]']}, r"messages\[0\]: content: expected str, found 5"),
        ({"text_input": ["a"], "seed": [1], "random_seed": [2]}, r"one of seed and random_seed, found \[1, 2\]"),
        ({"text_input": ["a"], "timeout_s": [0.0]}, "timeout_s must be above 0, found 0.0"),
        ({"text_input": ["a"], "timeout_s": [float("nan")]}, "timeout_s must be above 0, found nan"),
        ({"text_input": ["a"], "top_k": [-1]}, r"top_k must be in 0..\d+ \(0: all\), found -1"),
        (
            {"text_input": ["a"], "bad_words": ["b"]},
            r"bad_words must be empty \(words cannot be forbidden\), found \['b'\]",
        ),
        ({"text_input": ["a"], "beam_width": [2]}, r"beam_width must be 1 \(there is no beam search\), found 2"),
        ({"text_input": ["a"], "num_draft_tokens": [4]}, "num_draft_tokens must be 0"),
        ({"text_input": ["a"], "return_context_logits": [True]}, "return_context_logits must be false"),
        ({"text_input": ["a"], "embedding_bias_words": ["b"]}, "embedding_bias_words must be empty"),
        ({"input_ids": [1], "exclude_input_in_output": [False]}, "exclude_input_in_output must be true"),
    ],
)
def test_what_is_wrong_is_refused_with_its_value(values: Values, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read(values)


def test_tensors_without_elements_say_nothing_where_lists_are_expected() -> None:
    empty = FakeTensor("stop_words", np.empty((1, 0), dtype=np.object_))
    inputs = Inputs([*FakeRequest({"text_input": ["a"]}).inputs(), empty])
    assert read_request(inputs, ENVELOPE).service.params.stop == ()
