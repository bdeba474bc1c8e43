"""Coupling gumbel: a seed gives the same answer with and without drafts, token for token, whoever drafts."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest

from sparsespec.runtime.config import GraphsName, RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import RequestOutput
from sparsespec.runtime.sampling_params import SamplingParams
from tiny_llm import DraftCounts, first_answers, random_prompts, tiny_engine, ways_to_draft

BASE = SpeculationConfig(k=4, ratio=0.1, min_budget=16, max_lookups=8, coupling="gumbel")
RULES = ways_to_draft(BASE) | {"oracle": replace(BASE, drafter="oracle"), "none": replace(BASE, drafter="none")}
FIXED = ("default", "window", "ngram", "none")
PROMPTS = random_prompts((37, 80, 1, 61, 30))
SAMPLED = SamplingParams(max_tokens=20, temperature=1.2, top_k=30, top_p=0.95, seed=3, ignore_eos=True)


def generate(rule: str, params: SamplingParams, graphs: GraphsName = "off") -> list[RequestOutput]:
    llm = LLM(tiny_engine(), RULES[rule], RuntimeConfig(chunk_size=32, cuda_graphs=graphs))
    return llm.generate(PROMPTS, params)


@lru_cache(maxsize=2)
def plain(params: SamplingParams) -> list[tuple[int, ...]]:
    return first_answers(generate("none", params))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "none"])
def test_answers_are_plain_decodings(rule: str) -> None:
    found = generate(rule, SAMPLED)
    assert first_answers(found) == plain(SAMPLED)
    assert DraftCounts.of(found).rejected > 0
    if rule != "ngram":
        assert DraftCounts.of(found).accepted > 0


@pytest.mark.parametrize("rule", FIXED)
def test_answers_are_plain_decodings_in_fixed_shapes(rule: str) -> None:
    assert first_answers(generate(rule, SAMPLED, "on")) == plain(SAMPLED)


def test_penalties_take_part() -> None:
    params = replace(SAMPLED, repetition_penalty=1.2, presence_penalty=0.5)
    assert first_answers(generate("default", params)) == plain(params) != plain(SAMPLED)


def test_requests_that_do_not_speculate_draw_the_same() -> None:
    assert first_answers(generate("default", replace(SAMPLED, speculate=False))) == plain(SAMPLED)


def test_no_distributions_are_kept() -> None:
    llm = LLM(tiny_engine(), RULES["default"])
    assert llm.executor.memory.state.draft_probs.numel() == 0  # type: ignore[attr-defined]
