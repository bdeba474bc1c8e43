"""Run-time choices against their own limits and the engine's."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import pytest

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.config_io import add_flags, from_flags
from sparsespec.builder.errors import InputError
from sparsespec.runtime.config import DrafterName, RuntimeConfig, SpeculationConfig

BUILD = BuildConfig(max_batch_size=4, max_seq_len=1000, max_draft_len=6, max_budget=100)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpeculationConfig(k=0), "k must be at least 1 (drafter none decodes plainly), found 0"),
        (lambda: SpeculationConfig(ratio=0.0), "ratio must be in (0, 1], found 0.0"),
        (lambda: SpeculationConfig(ratio=1.5), "ratio must be in (0, 1], found 1.5"),
        (lambda: SpeculationConfig(ratio=math.nan), "ratio must be in (0, 1], found nan"),
        (lambda: SpeculationConfig(min_budget=0), "min_budget must be at least 1, found 0"),
        (lambda: SpeculationConfig(recent_share=-0.1), "recent_share must be in [0, 1], found -0.1"),
        (lambda: SpeculationConfig(recent_share=1.1), "recent_share must be in [0, 1], found 1.1"),
        (lambda: SpeculationConfig(recent_share=math.nan), "recent_share must be in [0, 1], found nan"),
        (lambda: SpeculationConfig(moving_share=-0.1), "moving_share must be in [0, 1], found -0.1"),
        (lambda: SpeculationConfig(moving_share=1.1), "moving_share must be in [0, 1], found 1.1"),
        (lambda: SpeculationConfig(max_lookups=-1), "max_lookups must be in 0..256, found -1"),
        (lambda: SpeculationConfig(max_lookups=257), "max_lookups must be in 0..256, found 257"),
        (lambda: SpeculationConfig(decay=-0.1), "decay must be in [0, 1), found -0.1"),
        (lambda: SpeculationConfig(decay=1.0), "decay must be in [0, 1), found 1.0"),
        (lambda: SpeculationConfig(max_ngram=0), "max_ngram must be in 1..16, found 0"),
        (lambda: SpeculationConfig(max_ngram=17), "max_ngram must be in 1..16, found 17"),
        (lambda: SpeculationConfig(min_ngram=0), "min_ngram must be in 1..max_ngram 4, found 0"),
        (lambda: SpeculationConfig(max_ngram=1, min_ngram=2), "min_ngram must be in 1..max_ngram 1, found 2"),
        (
            lambda: SpeculationConfig(max_drafting_kv_share=1.1),
            "max_drafting_kv_share must be in [0, 1], found 1.1",
        ),
        (
            lambda: SpeculationConfig(drafter="ngram", adaptive=True),
            "drafter must be one that drafts with the model, where adaptive is on, found 'ngram'",
        ),
        (lambda: SpeculationConfig(num_sinks=-1), "num_sinks must be at least 0, found -1"),
        (lambda: SpeculationConfig(num_sinks=2**31), "num_sinks must be at most 2147483647, found 2147483648"),
        (lambda: SpeculationConfig(min_budget=2**31), "min_budget must be at most 2147483647, found 2147483648"),
        (lambda: RuntimeConfig(chunk_size=2**31), "chunk_size must be at most 2147483647, found 2147483648"),
        (lambda: RuntimeConfig(max_batch_size=0), "max_batch_size must be at least 1, found 0"),
        (
            lambda: RuntimeConfig(max_tokens_in_paged_kv_cache=0),
            "max_tokens_in_paged_kv_cache must be at least 1, found 0",
        ),
        (
            lambda: RuntimeConfig(kv_cache_host_memory_bytes=-1),
            "kv_cache_host_memory_bytes must be at least 0, found -1",
        ),
        (
            lambda: RuntimeConfig(kv_cache_host_memory_bytes=99).num_host_pages(page_bytes=100),
            "kv_cache_host_memory_bytes must be 0, or at least the 100 bytes of one page, found 99",
        ),
        (lambda: RuntimeConfig(result_lag=-1), "result_lag must be in 0..64, found -1"),
        (lambda: RuntimeConfig(chunk_size=0), "chunk_size must be at least 1, found 0"),
    ],
)
def test_errors_name_value_and_limit(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: SpeculationConfig(drafter="pilar"), "'pilar'"),  # type: ignore[arg-type]
        (lambda: SpeculationConfig(ranking="median"), "'median'"),  # type: ignore[arg-type]
        (lambda: SpeculationConfig(moving_from="first"), "'first'"),  # type: ignore[arg-type]
        (lambda: SpeculationConfig(score_normalizer="none"), "'none'"),  # type: ignore[arg-type]
        (lambda: SpeculationConfig(coupling="copula"), "'copula'"),  # type: ignore[arg-type]
        (lambda: RuntimeConfig(policy="unifed"), "'unifed'"),  # type: ignore[arg-type]
        (lambda: RuntimeConfig(attention="plugin"), "'plugin'"),  # type: ignore[arg-type]
    ],
)
def test_an_unknown_choice_is_an_error_not_another_choice(make: Callable[[], object], value: str) -> None:
    """The library's callers pass no argparse."""
    with pytest.raises(InputError) as error:
        make()
    assert value in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SpeculationConfig(k=7, min_budget=10), "k must be at most the engine's max_draft_len 6, found 7"),
        (SpeculationConfig(drafter="ngram", k=7), "k must be at most the engine's max_draft_len 6, found 7"),
        (
            SpeculationConfig(k=6, min_budget=101),
            "min_budget must be such that max(min_budget, ratio * max_seq_len) is at most the engine's max_budget 100, "
            "found 101",
        ),
        (
            SpeculationConfig(k=6, min_budget=10, ratio=0.2),
            "ratio must be such that max(min_budget, ratio * max_seq_len) is at most the engine's max_budget 100, "
            "found 0.2",
        ),
    ],
)
def test_speculation_stays_within_the_engine(config: SpeculationConfig, message: str) -> None:
    with pytest.raises(InputError) as error:
        config.check_engine(BUILD)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RuntimeConfig(max_batch_size=5), "max_batch_size must be at most the engine's max_batch_size 4, found 5"),
        (RuntimeConfig(chunk_size=6), "chunk_size must be at least k + 1 = 7, found 6"),
    ],
)
def test_the_runtime_stays_within_the_engine(config: RuntimeConfig, message: str) -> None:
    with pytest.raises(InputError) as error:
        config.check_engine(BUILD, SpeculationConfig(k=6))
    assert str(error.value) == message


def test_the_limits_themselves_are_allowed() -> None:
    speculation = SpeculationConfig(k=6, ratio=0.1, min_budget=100)
    speculation.check_engine(BUILD)
    SpeculationConfig(recent_share=1.0, moving_share=1.0, max_lookups=256, decay=0.0, max_ngram=16, min_ngram=16)
    RuntimeConfig(max_batch_size=4, chunk_size=7, result_lag=0).check_engine(BUILD, speculation)


def test_plain_decoding_needs_nothing_of_the_engine_for_drafts() -> None:
    """The default k must not shut a caller out who drafts nothing."""
    plain = SpeculationConfig(drafter="none")
    assert plain.draft_len == 0
    plain.check_engine(BUILD)
    RuntimeConfig(chunk_size=1).check_engine(BUILD, plain)


def test_drafts_from_the_text_need_no_budget_and_no_draft_steps() -> None:
    ngram = SpeculationConfig(drafter="ngram", k=6, min_budget=101)
    assert (ngram.draft_len, ngram.num_draft_steps) == (6, 0)
    ngram.check_engine(BUILD)
    with pytest.raises(InputError):
        RuntimeConfig(chunk_size=6).check_engine(BUILD, ngram)


@pytest.mark.parametrize("drafter", ["pillar", "window", "oracle"])
def test_the_models_own_drafts_take_a_step_each(drafter: DrafterName) -> None:
    config = SpeculationConfig(drafter=drafter, k=5)
    assert (config.draft_len, config.num_draft_steps) == (5, 5)


@pytest.mark.parametrize(("size", "pages"), [(0, 0), (100, 1), (250, 2)])
def test_host_memory_holds_whole_pages(size: int, pages: int) -> None:
    assert RuntimeConfig(kv_cache_host_memory_bytes=size).num_host_pages(page_bytes=100) == pages


def test_flags_reach_every_choice() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, SpeculationConfig)
    add_flags(parser, RuntimeConfig)
    drafts = "--drafter window --k 5 --ranking average --moving_from last --score_normalizer exact --coupling gumbel"
    runs = "--policy lockstep --max_batch_size 3 --attention plugins"
    space = parser.parse_args(f"{drafts} {runs}".split())
    expected = SpeculationConfig(
        drafter="window", k=5, ranking="average", moving_from="last", score_normalizer="exact", coupling="gumbel"
    )
    assert from_flags(SpeculationConfig, space) == expected
    assert from_flags(RuntimeConfig, space) == RuntimeConfig(policy="lockstep", max_batch_size=3, attention="plugins")
