"""A KV pool that is several times too small gives the tokens of a large one, in fp64, bit for bit.

Every case also asserts that requests left and came back: without that the equality would say nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from random_cycles import RandomCycles
from sparsespec.builder.errors import InputError
from sparsespec.runtime.config import GraphsName, Policy, RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device.page_copies import PageCopies
from sparsespec.runtime.kv_cache import KvCacheManager
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduled_step import ScheduledStep
from sparsespec.runtime.step_counts import StepCounter
from sparsespec.runtime.tracing import HostTrace
from tiny_llm import assert_all_pages_free, first_answers, greedy, random_prompts, tiny_engine, ways_to_draft

SPECULATION = SpeculationConfig(k=4, ratio=0.1, min_budget=16, max_lookups=8)
RULES = ways_to_draft(SPECULATION) | {
    "none": SpeculationConfig(drafter="none"),
    "oracle": replace(SPECULATION, drafter="oracle", max_lookups=0, moving_share=0.0),
}
MOSTLY_SLOW = [
    name if name in ("default", "ngram", "none") else pytest.param(name, marks=pytest.mark.slow) for name in RULES
]
# Worst cases of 10 to 14 pages of 8 tokens, and four slots, in a pool of 16 pages.
PROMPTS = random_prompts((20, 37, 9, 30, 26, 14))
NEW_TOKENS = 64
SAMPLED = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.8, seed=3, ignore_eos=True)
LARGE = RuntimeConfig(chunk_size=32)
SMALL = replace(LARGE, max_tokens_in_paged_kv_cache=16 * 8, kv_cache_host_memory_bytes=2**24)


class MoveCounter(HostTrace):
    """What the steps moved; checks the owners of all pages after each."""

    def __init__(self) -> None:
        super().__init__()
        self.kv_cache: KvCacheManager | None = None  # to check
        self.offloads = 0
        self.restores = 0

    def count(self, step: ScheduledStep, counter: StepCounter) -> None:
        """See Recorder."""
        assert self.kv_cache is not None
        self.kv_cache.check_integrity()
        self.offloads += len(step.offloads)
        self.restores += len(step.restores)


@cache
def from_a_large_pool(rule: str, params: SamplingParams) -> list[tuple[int, ...]]:
    return first_answers(LLM(tiny_engine(), RULES[rule], LARGE).generate(PROMPTS, params))


def from_a_small_pool(rule: str, params: SamplingParams, config: RuntimeConfig = SMALL) -> list[tuple[int, ...]]:
    moves = MoveCounter()
    llm = LLM(tiny_engine(), RULES[rule], config, moves)
    moves.kv_cache = llm.kv_cache
    outputs = llm.generate(PROMPTS, params)
    assert_all_pages_free(llm)
    assert moves.offloads == moves.restores > 1
    return first_answers(outputs)


@pytest.mark.parametrize("rule", MOSTLY_SLOW)
def test_greedy(rule: str) -> None:
    assert from_a_small_pool(rule, greedy(NEW_TOKENS)) == from_a_large_pool(rule, greedy(NEW_TOKENS))


@pytest.mark.parametrize("rule", MOSTLY_SLOW)
def test_sampled(rule: str) -> None:
    assert from_a_small_pool(rule, SAMPLED) == from_a_large_pool(rule, SAMPLED)


@pytest.mark.parametrize("graphs", ["on", "off"])
@pytest.mark.parametrize("policy", ["unified", "lockstep"])
@pytest.mark.parametrize("lag", [0, pytest.param(1, marks=pytest.mark.slow), 3])
def test_late_results_and_both_policies(graphs: GraphsName, policy: Policy, lag: int) -> None:
    config = replace(SMALL, cuda_graphs=graphs, policy=policy, result_lag=lag)
    assert from_a_small_pool("default", SAMPLED, config) == from_a_large_pool("default", SAMPLED)


def test_cycles_of_any_length() -> None:
    llm = LLM(tiny_engine(), SPECULATION, SMALL, moves := MoveCounter(), RandomCycles(3))
    moves.kv_cache = llm.kv_cache
    assert first_answers(llm.generate(PROMPTS, greedy(NEW_TOKENS))) == from_a_large_pool("none", greedy(NEW_TOKENS))
    assert moves.offloads == moves.restores > 1
    assert_all_pages_free(llm)


def test_short_chunks_of_prompts_that_leave_half_read() -> None:
    config = replace(SMALL, chunk_size=5)
    assert from_a_small_pool("default", SAMPLED, config) == from_a_large_pool("default", SAMPLED)


def skip(copies: PageCopies, step: ScheduledStep) -> None:
    """Nothing is copied."""


def mix_up(copies: PageCopies, step: ScheduledStep) -> None:
    """The first page of a request comes back as its second one and the other way round."""
    swapped = [replace(move, host_pages=(move.host_pages[1::-1] + move.host_pages[2:])) for move in step.restores]
    COPY(copies, replace(step, restores=tuple(swapped)))


COPY = PageCopies._copy


@pytest.mark.parametrize("fault", [skip, mix_up])
def test_the_tokens_tell_pages_that_were_not_copied_or_mixed_up(fault: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PageCopies, "_copy", fault)
    assert from_a_small_pool("default", SAMPLED) != from_a_large_pool("default", SAMPLED)


def test_a_cancelled_request_frees_its_pages_wherever_they_are() -> None:
    """Whoever is away, leaving or on the way back when all are cancelled, after any number of steps."""
    seen = 0
    for num_steps in range(20, 90, 3):
        llm = LLM(tiny_engine(), SPECULATION, replace(SMALL, result_lag=3))
        ids = [llm.add_request(prompt, greedy(NEW_TOKENS)) for prompt in PROMPTS]
        for _ in range(num_steps):
            llm.step()
        seen += llm.kv_cache.num_used_host_pages > 0
        for each in ids:
            llm.cancel(each)
        assert_all_pages_free(llm)
    assert seen > 5


def test_pages_hold_what_they_held_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page: what comes back is what left, and lies where the slot's page table says."""
    left: dict[int, torch.Tensor] = {}
    num_compared = 0

    def watched(copies: PageCopies, step: ScheduledStep) -> None:
        nonlocal num_compared
        for move in step.offloads:
            left[move.slot] = copies._pool[list(move.pages)]
        COPY(copies, step)
        for move in step.restores:
            assert copies._pool[list(move.pages)].equal(left[move.slot])
            num_compared += len(move.pages)

    monkeypatch.setattr(PageCopies, "_copy", watched)
    from_a_small_pool("default", greedy(NEW_TOKENS))
    assert num_compared > 20


def test_host_memory_for_less_than_a_page() -> None:
    with pytest.raises(InputError, match="kv_cache_host_memory_bytes must be 0, or at least"):
        LLM(tiny_engine(), SPECULATION, replace(LARGE, kv_cache_host_memory_bytes=7))
