"""Greedy speculation gives plain decoding's tokens, in fp64, whatever drafts and however it is scheduled.

Every case also asserts that the context outgrew the budget and that drafts were both accepted and rejected: without
that the equality would say nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespec.plugins.pillar_attention import reference
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device import torch_executor
from sparsespec.runtime.device.drafter import commit
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import RequestOutput
from sparsespec.runtime.sampling_params import SamplingParams
from tiny_llm import (
    BUILD,
    DraftCounts,
    assert_all_pages_free,
    engine_of,
    first_answers,
    greedy,
    random_prompts,
    tiny_engine,
)
from tiny_models import tiny_llama, tiny_model_config

PROMPTS = tuple(random_prompts((60, 97, 7, 33, 1)))
NEW_TOKENS = 48
MIN_BUDGET = 24
DRAFTERS = {
    "pillar": SpeculationConfig(drafter="pillar", min_budget=MIN_BUDGET),
    "paper": SpeculationConfig(drafter="pillar", min_budget=MIN_BUDGET, recent_share=0.0),
    "window": SpeculationConfig(drafter="window", min_budget=MIN_BUDGET),
}


@dataclass(frozen=True)
class Case:
    """One way to run the loop."""

    drafter: str
    k: int
    runtime: RuntimeConfig

    @property
    def speculation(self) -> SpeculationConfig:
        base = DRAFTERS[self.drafter]
        return SpeculationConfig(
            drafter=base.drafter, k=self.k, min_budget=base.min_budget, recent_share=base.recent_share
        )


@pytest.fixture(scope="module")
def plain() -> list[tuple[int, ...]]:
    llm = LLM(tiny_engine(), SpeculationConfig(drafter="none"), RuntimeConfig())
    return first_answers(llm.generate(PROMPTS, greedy(NEW_TOKENS)))


def check_lossless(case: Case, plain: list[tuple[int, ...]]) -> None:
    llm = LLM(tiny_engine(), case.speculation, case.runtime)
    outputs = llm.generate(PROMPTS, greedy(NEW_TOKENS))
    assert first_answers(outputs) == plain
    assert_says_something(outputs)
    assert_all_pages_free(llm)


def assert_says_something(outputs: list[RequestOutput]) -> None:
    counts = DraftCounts.of(outputs)
    assert counts.longest_context > MIN_BUDGET
    assert counts.accepted > 0
    assert counts.rejected > 0


def test_plain_decoding_equals_transformers() -> None:
    """The reference that everything below is compared with, against an implementation that is not ours."""
    reference_model = tiny_llama(tiny_model_config()).double()
    engine = engine_of(reference_model, tiny_model_config())
    answers = first_answers(LLM(engine, SpeculationConfig(drafter="none")).generate(PROMPTS, greedy(24)))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = list(prompt)
        for _ in range(24):
            tokens.append(int(reference_model(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert answer == tuple(tokens[len(prompt) :])


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("policy", ["unified", "lockstep"])
def test_every_drafter_and_policy(drafter: str, policy: str, plain: list[tuple[int, ...]]) -> None:
    check_lossless(Case(drafter, 4, RuntimeConfig(policy=policy)), plain)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("k", range(1, 17))
def test_every_k(drafter: str, k: int, plain: list[tuple[int, ...]]) -> None:
    check_lossless(Case(drafter, k, RuntimeConfig(chunk_size=40)), plain)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [5, 17, 64])
def test_chunk_sizes(chunk_size: int, plain: list[tuple[int, ...]]) -> None:
    check_lossless(Case("pillar", 4, RuntimeConfig(chunk_size=chunk_size)), plain)


@pytest.mark.parametrize("result_lag", [0, 1, 3])
def test_late_results(result_lag: int, plain: list[tuple[int, ...]]) -> None:
    check_lossless(Case("pillar", 3, RuntimeConfig(result_lag=result_lag)), plain)


@pytest.mark.slow
@pytest.mark.parametrize("max_batch_size", [1, 2, 4])
def test_batch_sizes(max_batch_size: int, plain: list[tuple[int, ...]]) -> None:
    check_lossless(Case("pillar", 3, RuntimeConfig(max_batch_size=max_batch_size)), plain)


def test_kv_cache_for_two_requests_at_a_time(plain: list[tuple[int, ...]]) -> None:
    """Pages are freed, granted again and overwritten while others run."""
    config = RuntimeConfig(max_tokens_in_paged_kv_cache=2 * 160)
    check_lossless(Case("pillar", 4, config), plain)


def test_requests_join_and_leave_at_any_step(plain: list[tuple[int, ...]]) -> None:
    llm = LLM(tiny_engine(), DRAFTERS["pillar"], RuntimeConfig())
    request_ids = []
    for index, prompt in enumerate(PROMPTS):
        request_ids.append(llm.add_request(prompt, greedy(NEW_TOKENS, speculate=index != 2)))
        for _ in range(5 * index + 3):
            llm.step()
    while llm.has_requests:
        llm.step()
    outputs = [llm.take_output(request_id) for request_id in request_ids]
    assert first_answers(outputs) == plain
    assert_says_something(outputs)
    assert_all_pages_free(llm)


@pytest.fixture(scope="module")
def mixed() -> Iterator[list[RequestOutput]]:
    """What all mixes together produced; a single mix may be too short to say anything."""
    outputs: list[RequestOutput] = []
    yield outputs
    assert_says_something(outputs)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_mix(data: st.DataObject, plain: list[tuple[int, ...]], mixed: list[RequestOutput]) -> None:
    """Random order, arrival, cancellation, length, chunk size, lag and policy; whoever runs to the end is right."""
    k = data.draw(st.integers(1, 16), "k")
    config = RuntimeConfig(
        chunk_size=data.draw(st.integers(k + 1, 64), "chunk_size"),
        policy=data.draw(st.sampled_from(["unified", "lockstep"]), "policy"),
        result_lag=data.draw(st.integers(0, 3), "result_lag"),
        max_batch_size=data.draw(st.integers(1, 4), "max_batch_size"),
    )
    llm = LLM(tiny_engine(), Case(data.draw(st.sampled_from(list(DRAFTERS))), k, config).speculation, config)
    expected: dict[int, tuple[int, ...]] = {}
    for index in data.draw(st.permutations(range(len(PROMPTS))), "order"):
        length = data.draw(st.integers(1, NEW_TOKENS), "length")
        params = greedy(length, speculate=data.draw(st.booleans(), "speculate"))
        expected[llm.add_request(PROMPTS[index], params)] = plain[index][:length]
        for _ in range(data.draw(st.integers(0, 20), "steps")):
            llm.step()
        if data.draw(st.integers(0, 4), "cancel") == 0:
            request_id = data.draw(st.sampled_from(list(expected)), "which")
            llm.cancel(request_id)
            tokens = llm.take_output(request_id).outputs[0].token_ids
            assert tokens == expected.pop(request_id)[: len(tokens)]
            if not expected:
                break
    while llm.has_requests:
        llm.step()
    outputs = [llm.take_output(number) for number in expected]
    assert first_answers(outputs) == list(expected.values())
    mixed += outputs
    assert_all_pages_free(llm)


def test_drafts_that_read_everything_are_all_accepted() -> None:
    """With room for the whole context the draft model is the model: this pins down what draft rows read."""
    assert _acceptance_of_full_reading(greedy(NEW_TOKENS)) == 1.0


def test_sampled_drafts_that_read_everything_are_all_accepted() -> None:
    """Drafts are drawn from what the verification draws from: same temperature, cuts and masked stops."""
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.8, top_k=20, top_p=0.9, seed=3, min_tokens=NEW_TOKENS)
    assert _acceptance_of_full_reading(params) == 1.0


def test_mutation_acceptance_off(monkeypatch: pytest.MonkeyPatch, plain: list[tuple[int, ...]]) -> None:
    monkeypatch.setattr(torch_executor, "count_accepted", lambda block, _uniform: block.num_drafts.clone())
    assert _tokens_differ(plain)


def test_mutation_verify_rewrite_skipped(monkeypatch: pytest.MonkeyPatch, plain: list[tuple[int, ...]]) -> None:
    append, rows = reference._append, 4 + 1

    def keep_drafted(params, kv_pool, pages, positions, k, v) -> None:  # type: ignore[no-untyped-def]
        first = rows - 1 if len(positions) == rows else 0
        append(params, kv_pool, pages, positions[first:], k[first:], v[first:])

    monkeypatch.setattr(reference, "_append", keep_drafted)
    assert _tokens_differ(plain)


@pytest.mark.parametrize("error", [-1, 1])
def test_mutation_truncation_off_by_one(
    error: int, monkeypatch: pytest.MonkeyPatch, plain: list[tuple[int, ...]]
) -> None:
    def off_by_one(state, slots, kv_len, block_start, config, drafter) -> None:  # type: ignore[no-untyped-def]
        commit(state, slots, kv_len + error, block_start, config, drafter)

    monkeypatch.setattr(torch_executor, "commit", off_by_one)
    assert _tokens_differ(plain)


def test_mutation_recent_start_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losslessness does not depend on recent_start, acceptance does."""

    def off_by_one(state, slots, kv_len, block_start, config, drafter) -> None:  # type: ignore[no-untyped-def]
        commit(state, slots, kv_len, block_start, config, drafter)
        state.recent_start[slots] += 1

    monkeypatch.setattr(torch_executor, "commit", off_by_one)
    assert _acceptance_of_full_reading(greedy(NEW_TOKENS)) < 1.0


def _tokens_differ(plain: list[tuple[int, ...]]) -> bool:
    llm = LLM(tiny_engine(), Case("pillar", 4, RuntimeConfig()).speculation, RuntimeConfig())
    return first_answers(llm.generate(PROMPTS, greedy(NEW_TOKENS))) != plain


def _acceptance_of_full_reading(params: SamplingParams) -> float:
    speculation = SpeculationConfig(k=4, min_budget=BUILD.max_budget, recent_share=1.0)
    outputs = LLM(tiny_engine(), speculation).generate(PROMPTS, params)
    checks = [check for output in outputs for check in output.outputs[0].verifications]
    return sum(check.num_accepted for check in checks) / sum(check.num_drafts for check in checks)
