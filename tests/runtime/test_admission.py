"""What may enter: limits with their values, and what a checked request is completed with."""

from __future__ import annotations

import pytest

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.errors import RequestError
from sparsespec.runtime.admission import AdmissionRules
from sparsespec.runtime.request import DraftShape
from sparsespec.runtime.sampling_params import SamplingParams
from tiny_llm import tiny_engine
from tiny_models import tiny_model_config

THREE_STEPS = DraftShape(draft_len=3, num_draft_steps=3)


def make_rules(
    drafts: DraftShape = THREE_STEPS, kv_cache_tokens: int = 1000, eos_token_ids: tuple[int, ...] = (0, 9)
) -> AdmissionRules:
    build = BuildConfig(dtype="float32", max_seq_len=100, max_draft_len=3)
    model = tiny_model_config(vocab_size=64, eos_token_ids=eos_token_ids)
    return AdmissionRules(EngineConfig(model, build), tiny_engine().codec, drafts, kv_cache_tokens)


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ((), SamplingParams(), "the prompt is empty: expected at least 1 token, found 0"),
        (
            (1,) * 100,
            SamplingParams(),
            "the prompt has 100 tokens; with at least one new token that is over max_seq_len 100",
        ),
        ((1, 64), SamplingParams(), "prompt: token 64 is outside the vocabulary of 64"),
        ((1, -1), SamplingParams(), "prompt: token -1 is outside the vocabulary of 64"),
        (
            (1,),
            SamplingParams(stop_token_ids=(64,)),
            "stop_token_ids: token 64 is outside the vocabulary of 64",
        ),
        (
            (1,),
            SamplingParams(stop_token_ids=tuple(range(1, 16))),
            "at most 16 stop tokens are supported, found 17",
        ),
    ],
)
def test_errors_name_value_and_limit(prompt: tuple[int, ...], params: SamplingParams, message: str) -> None:
    rules = make_rules(eos_token_ids=(0, 40))
    with pytest.raises(RequestError) as error:
        rules.specs(0, prompt, params)
    assert str(error.value) == message


def test_a_request_larger_than_the_cache_is_refused_at_once() -> None:
    """10 of prompt and 20 new: 29 with K and V at most, and a block of 4 past them."""
    params = SamplingParams(max_tokens=20)
    make_rules(kv_cache_tokens=33).specs(0, (1,) * 10, params)
    with pytest.raises(RequestError) as error:
        make_rules(kv_cache_tokens=32).specs(0, (1,) * 10, params)
    found = "prompt of 10 and up to 20 new tokens need 33 tokens of KV cache, which holds 32"
    assert str(error.value) == found


def test_max_tokens_ends_at_the_engines_max_seq_len() -> None:
    (spec,) = make_rules().specs(0, (1,) * 99, SamplingParams(max_tokens=50))
    assert spec.max_tokens == 1
    (spec,) = make_rules().specs(0, (1,) * 60, SamplingParams(max_tokens=50))
    assert spec.max_tokens == 40


def test_answers_get_their_own_ids_and_seeds() -> None:
    specs = make_rules().specs(7, (1, 2), SamplingParams(n=3, seed=2**63 - 2))
    assert [spec.request_id for spec in specs] == [7, 8, 9]
    assert [spec.seed for spec in specs] == [2**63 - 2, 2**63 - 1, 0]
    assert all(spec.prompt_token_ids == (1, 2) for spec in specs)


def test_without_a_seed_every_request_draws_its_own() -> None:
    rules = make_rules()
    seeds = [rules.specs(0, (1,), SamplingParams())[0].seed for _ in range(4)]
    assert len(dict.fromkeys(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("params", "stops"),
    [
        (SamplingParams(), (0, 9)),
        (SamplingParams(stop_token_ids=(5, 9)), (0, 9, 5)),
        (SamplingParams(ignore_eos=True), ()),
        (SamplingParams(ignore_eos=True, stop_token_ids=(5,)), (5,)),
    ],
)
def test_stop_tokens_are_the_models_and_the_callers(params: SamplingParams, stops: tuple[int, ...]) -> None:
    (spec,) = make_rules().specs(0, (1,), params)
    assert spec.stop_token_ids == stops


@pytest.mark.parametrize("drafts", [DraftShape(3, 3), DraftShape(3, 0)])
def test_a_caller_may_decline_speculation(drafts: DraftShape) -> None:
    (spec,) = make_rules(drafts).specs(0, (1,), SamplingParams(speculate=False))
    assert (spec.draft_len, spec.num_draft_steps) == (0, 0)
    (spec,) = make_rules(drafts).specs(0, (1,), SamplingParams())
    assert (spec.draft_len, spec.num_draft_steps) == (3, drafts.num_draft_steps)


def test_stop_tokens_in_a_list_are_served_or_refused() -> None:
    """Callers of vLLM write lists; a TypeError would not be theirs to understand."""
    try:
        (spec,) = make_rules().specs(0, (1,), SamplingParams(stop_token_ids=[5]))  # type: ignore[arg-type]
    except RequestError:
        return
    assert spec.stop_token_ids == (0, 9, 5)
