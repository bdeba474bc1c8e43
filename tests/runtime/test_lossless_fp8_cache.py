"""Greedy speculation gives plain decoding's tokens over the same FP8 KV cache, in fp64.

Whatever is read was rounded when it was written, a step's own rows too: else a verification would see other keys than
plain decoding does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from sparsespec.builder.model_config import Family
from sparsespec.plugins.pillar_attention import reference
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.outputs import RequestOutput
from tiny_llm import (
    BUILD,
    DraftCounts,
    assert_all_pages_free,
    first_answers,
    greedy,
    random_prompts,
    tiny_engine,
    ways_to_draft,
)
from tiny_models import tiny_model_config

PROMPTS = tuple(random_prompts((60, 97, 7, 33, 1)))
NEW_TOKENS = 48
MIN_BUDGET = 24
SPECULATION = SpeculationConfig(k=4, min_budget=MIN_BUDGET, max_lookups=6)
DRAFTERS = ways_to_draft(SPECULATION) | {"oracle": replace(SPECULATION, drafter="oracle")}
FP8_BUILD = replace(BUILD, kv_cache_dtype="fp8")


def engine_of(family: Family) -> LoadedEngine:
    return tiny_engine(0, FP8_BUILD, tiny_model_config(family=family))


def answers(engine: LoadedEngine, speculation: SpeculationConfig) -> list[RequestOutput]:
    llm = LLM(engine, speculation)
    outputs = llm.generate(PROMPTS, greedy(NEW_TOKENS))
    assert_all_pages_free(llm)
    return outputs


def plain_answers(engine: LoadedEngine) -> list[tuple[int, ...]]:
    return first_answers(answers(engine, SpeculationConfig(drafter="none")))


@pytest.fixture(scope="module")
def plain() -> list[tuple[int, ...]]:
    return plain_answers(engine_of("llama"))


def assert_says_something(outputs: list[RequestOutput]) -> None:
    counts = DraftCounts.of(outputs)
    assert counts.longest_context > MIN_BUDGET
    assert counts.accepted > 0
    assert counts.rejected > 0


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_every_drafter(drafter: str, plain: list[tuple[int, ...]]) -> None:
    outputs = answers(engine_of("llama"), DRAFTERS[drafter])
    assert first_answers(outputs) == plain
    assert_says_something(outputs)


@pytest.mark.parametrize("family", get_args(Family))
def test_every_family(family: Family) -> None:
    """Biases, and norms of keys before they are rounded."""
    engine = engine_of(family)
    outputs = answers(engine, SPECULATION)
    assert first_answers(outputs) == plain_answers(engine)
    assert_says_something(outputs)


@pytest.mark.parametrize("config", [RuntimeConfig(chunk_size=17), RuntimeConfig(policy="lockstep", result_lag=3)])
def test_chunks_and_policies(config: RuntimeConfig, plain: list[tuple[int, ...]]) -> None:
    """Prompts in pieces read what earlier pieces left, and requests share steps in other ways."""
    outputs = LLM(engine_of("llama"), SPECULATION, config).generate(PROMPTS, greedy(NEW_TOKENS))
    assert first_answers(outputs) == plain
    assert_says_something(outputs)


def test_the_cache_is_fp8(plain: list[tuple[int, ...]]) -> None:
    """Other tokens than over a cache of the model's type, and than by scales that cut keys and values off."""
    model = tiny_model_config()
    assert plain_answers(tiny_engine(0, BUILD, model)) != plain
    engine = engine_of("llama")
    weights = {name: tensor / 100 if name.endswith("kv_scale") else tensor for name, tensor in engine.weights.items()}
    assert plain_answers(replace(engine, weights=weights)) != plain


def test_mutation_rows_that_round_differently(monkeypatch: pytest.MonkeyPatch, plain: list[tuple[int, ...]]) -> None:
    """Blocks store their rows cut off instead of rounded."""
    append, rows, to_fp8 = reference._append, SPECULATION.k + 1, reference.to_fp8

    def cut_off(x: Tensor, scale: Tensor) -> Tensor:
        rounded = to_fp8(x, scale)
        above = rounded.float().abs() > (x.float() / scale).abs()
        return (rounded.view(torch.uint8) - above.byte()).view(torch.float8_e4m3fn)

    def append_otherwise(params, layer, pages, positions, k, v) -> None:  # type: ignore[no-untyped-def]
        with pytest.MonkeyPatch.context() as patch:
            if positions.shape[1] == rows:
                patch.setattr(reference, "to_fp8", cut_off)
            append(params, layer, pages, positions, k, v)

    monkeypatch.setattr(reference, "_append", append_otherwise)
    assert first_answers(answers(engine_of("llama"), SPECULATION)) != plain
