"""The torch executor on a GPU, with the reference ops: in fp64 and in the types that GPUs serve with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.sampling_params import SamplingParams
from tiny_llm import BUILD, DraftCounts, assert_all_pages_free, first_answers, greedy, random_prompts, tiny_engine

pytestmark = pytest.mark.gpu

PROMPTS = random_prompts((60, 97, 7, 33, 1))
SPECULATION = SpeculationConfig(k=4, min_budget=24)


def on_gpu() -> LoadedEngine:
    engine = tiny_engine()
    return LoadedEngine(engine.config, {name: w.cuda() for name, w in engine.weights.items()}, engine.codec)


DRAFTERS = {
    "default": SPECULATION,
    "paper": replace(SPECULATION, recent_share=0.0, moving_share=0.0, max_lookups=0, ranking="mean"),
    "last": replace(SPECULATION, moving_share=0.25, moving_from="last", max_lookups=0),
    "diagonal": replace(SPECULATION, moving_share=0.25, moving_from="diagonal", max_lookups=6),
    "accepted": replace(SPECULATION, moving_share=0.25, moving_from="diagonal", max_lookups=6, ranking="accepted"),
    "average": replace(SPECULATION, moving_share=0.25, max_lookups=6, ranking="average"),
    "window": replace(SPECULATION, drafter="window"),
    "oracle": replace(SPECULATION, drafter="oracle"),
    "ngram": replace(SPECULATION, drafter="ngram", min_ngram=1),
}


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("policy", ["unified", "lockstep"])
def test_greedy_tokens_are_the_cpus(policy: str, drafter: str) -> None:
    plain = first_answers(LLM(tiny_engine(), SpeculationConfig(drafter="none")).generate(PROMPTS, greedy(48)))
    llm = LLM(on_gpu(), DRAFTERS[drafter], RuntimeConfig(policy=policy))  # type: ignore[arg-type]
    outputs = llm.generate(PROMPTS, greedy(48))
    assert first_answers(outputs) == plain
    assert DraftCounts.of(outputs).accepted > 0
    assert DraftCounts.of(outputs).rejected > 0
    assert_all_pages_free(llm)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_sampled_tokens_are_the_cpus(drafter: str) -> None:
    params = SamplingParams(max_tokens=40, temperature=0.8, top_p=0.9, seed=3, ignore_eos=True)
    answers = [
        first_answers(LLM(engine, DRAFTERS[drafter]).generate(PROMPTS, params)) for engine in (tiny_engine(), on_gpu())
    ]
    assert answers[0] == answers[1]


def test_the_host_may_be_late() -> None:
    """Results may be read three steps late; the tokens stay the same."""
    answers = [
        first_answers(LLM(on_gpu(), SPECULATION, RuntimeConfig(result_lag=lag)).generate(PROMPTS, greedy(30)))
        for lag in (0, 3)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_serving_types_run(dtype: str) -> None:
    """In plain torch; test_gpu_plugins.py has the kernels."""
    engine = on_gpu()
    weights = {name: weight.to(getattr(torch, dtype)) for name, weight in engine.weights.items()}
    config = type(engine.config)(engine.config.model, type(BUILD)(**(vars(BUILD) | {"dtype": dtype})))
    llm = LLM(LoadedEngine(config, weights, engine.codec), SPECULATION, RuntimeConfig(attention="reference"))
    outputs = llm.generate(PROMPTS, greedy(40))
    assert [len(answer) for answer in first_answers(outputs)] == [40] * len(PROMPTS)
    assert DraftCounts.of(outputs).accepted > 0
