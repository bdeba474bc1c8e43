"""Greedy speculation gives plain decoding's tokens, in fp64, whatever drafts and however it is scheduled.

Every case also asserts that the context outgrew the budget and that drafts were both accepted and rejected: without
that the equality would say nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespec.plugins.pillar_attention import reference
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device import torch_executor
from sparsespec.runtime.device.drafter import BudgetSplit, VerifiedBlocks, commit
from sparsespec.runtime.device.slot_state import SlotState
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
PAPER = SpeculationConfig(min_budget=MIN_BUDGET, recent_share=0.0, moving_share=0.0, max_lookups=0, ranking="mean")
PILLAR = replace(PAPER, recent_share=0.25)
DRAFTERS = {
    "pillar": PILLAR,
    "paper": PAPER,
    "moving": replace(PILLAR, moving_share=0.25, moving_from="last"),
    "diagonal": replace(PILLAR, moving_share=0.25, moving_from="diagonal"),
    "lookups": replace(PILLAR, max_lookups=6),
    "accepted": replace(PILLAR, ranking="accepted"),
    "average": replace(PILLAR, ranking="average"),
    "all": replace(PILLAR, moving_share=0.25, moving_from="diagonal", max_lookups=6, ranking="accepted"),
    "default": SpeculationConfig(min_budget=MIN_BUDGET),
    "oracle": replace(PILLAR, drafter="oracle"),
    "window": replace(PILLAR, drafter="window"),
    "ngram": replace(PILLAR, drafter="ngram", min_ngram=1),
}
MOSTLY_SLOW = [
    name if name in ("pillar", "all", "ngram") else pytest.param(name, marks=pytest.mark.slow) for name in DRAFTERS
]


@dataclass(frozen=True)
class Case:
    """One way to run the loop."""

    drafter: str
    k: int
    runtime: RuntimeConfig

    @property
    def speculation(self) -> SpeculationConfig:
        return replace(DRAFTERS[self.drafter], k=self.k)


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
def test_every_drafter(drafter: str, plain: list[tuple[int, ...]]) -> None:
    check_lossless(Case(drafter, 4, RuntimeConfig(policy="unified")), plain)


@pytest.mark.parametrize("drafter", MOSTLY_SLOW)
def test_lockstep(drafter: str, plain: list[tuple[int, ...]]) -> None:
    check_lossless(Case(drafter, 4, RuntimeConfig(policy="lockstep")), plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drafter", "k"),
    [(name, k) for name in DRAFTERS for k in (range(1, 17) if name in ("pillar", "all") else (1, 7, 16))],
)
def test_every_k(drafter: str, k: int, plain: list[tuple[int, ...]]) -> None:
    check_lossless(Case(drafter, k, RuntimeConfig(chunk_size=40)), plain)


@pytest.mark.parametrize(
    "config",
    [
        *(RuntimeConfig(result_lag=lag) for lag in (0, 1, 3)),
        RuntimeConfig(max_tokens_in_paged_kv_cache=2 * 160),  # pages are freed, granted again and overwritten
        *(pytest.param(RuntimeConfig(chunk_size=size), marks=pytest.mark.slow) for size in (5, 17, 64)),
        *(pytest.param(RuntimeConfig(max_batch_size=size), marks=pytest.mark.slow) for size in (1, 2, 4)),
    ],
)
def test_late_results_little_memory_and_small_steps(config: RuntimeConfig, plain: list[tuple[int, ...]]) -> None:
    check_lossless(Case("pillar", 4, config), plain)


@pytest.mark.parametrize("drafter", MOSTLY_SLOW)
def test_requests_join_and_leave_at_any_step(drafter: str, plain: list[tuple[int, ...]]) -> None:
    """One of them does not speculate."""
    llm = LLM(tiny_engine(), Case(drafter, 5, RuntimeConfig()).speculation, RuntimeConfig())
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


@pytest.mark.parametrize("drafter", MOSTLY_SLOW)
def test_a_slot_changes_hands(drafter: str, plain: list[tuple[int, ...]]) -> None:
    """In the midst of a cycle, to requests whose prompts are longer and shorter than what it held before."""
    config = RuntimeConfig(max_batch_size=1, result_lag=2)
    llm = LLM(tiny_engine(), Case(drafter, 4, config).speculation, config)
    for num_steps in (9, 12, 17):
        request_id = llm.add_request(PROMPTS[0], greedy(NEW_TOKENS))
        for _ in range(num_steps):
            llm.step()
        llm.cancel(request_id)
        cancelled = llm.take_output(request_id).outputs[0].token_ids
        assert cancelled == plain[0][: len(cancelled)]
        assert first_answers(llm.generate(PROMPTS[1:3], greedy(20))) == [tokens[:20] for tokens in plain[1:3]]
    assert_all_pages_free(llm)


@pytest.mark.parametrize("drafter", MOSTLY_SLOW)
def test_up_to_the_engines_last_position(drafter: str) -> None:
    lengths, config, answers = (31, 2), RuntimeConfig(result_lag=3), []
    prompts = random_prompts(tuple(BUILD.max_seq_len - length for length in lengths), seed=4)
    for speculation in (SpeculationConfig(drafter="none"), Case(drafter, BUILD.max_draft_len, config).speculation):
        llm = LLM(tiny_engine(), speculation, config)
        ids = [llm.add_request(prompt, greedy(length)) for prompt, length in zip(prompts, lengths, strict=True)]
        while llm.has_requests:
            llm.step()
        answers.append(first_answers([llm.take_output(request_id) for request_id in ids]))
        assert_all_pages_free(llm)
    assert answers[0] == answers[1]
    assert [len(tokens) for tokens in answers[0]] == [31, 2]


@pytest.mark.parametrize("drafter", ["pillar", "all", "window"])
def test_a_budget_beyond_the_context_reads_the_context(drafter: str) -> None:
    """What the parts of the budget may read together is what there is."""
    k = 3
    llm = LLM(tiny_engine(), Case(drafter, k, RuntimeConfig()).speculation)
    checks = llm.generate([PROMPTS[4]], greedy(NEW_TOKENS))[0].outputs[0].verifications
    full = [sum(check.context + index + 1 for index in range(k)) for check in checks]
    assert all(check.draft_kv_tokens <= most for check, most in zip(checks, full, strict=True))
    assert checks[1].draft_kv_tokens == full[1]
    assert checks[-1].draft_kv_tokens < full[-1]


def test_a_text_without_repetition_has_no_drafts() -> None:
    """Rows of drafts that were not found are padding: neither accepted nor counted."""
    llm = LLM(tiny_engine(), Case("ngram", 4, RuntimeConfig()).speculation)
    prompt = tuple(dict.fromkeys(PROMPTS[3]))
    output = llm.generate([prompt], greedy(NEW_TOKENS))[0].outputs[0]
    for check in output.verifications:
        known = [*prompt, *output.token_ids[: check.first_output]]
        assert check.num_drafts == (4 if known[-1] in known[:-1] else 0)
    assert [check.num_drafts for check in output.verifications].count(0) > 0
    assert all(check.num_accepted <= check.num_drafts for check in output.verifications)
    assert all(check.num_tokens == 1 for check in output.verifications if check.num_drafts == 0)


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

    def keep_drafted(params, layer, pages, positions, k, v) -> None:  # type: ignore[no-untyped-def]
        first = rows - 1 if positions.shape[1] == rows else 0
        append(params, layer, pages, positions[:, first:], k[:, first:], v[:, first:])

    monkeypatch.setattr(reference, "_append", keep_drafted)
    assert _tokens_differ(plain)


@pytest.mark.parametrize("error", [-1, 1])
def test_mutation_truncation_off_by_one(
    error: int, monkeypatch: pytest.MonkeyPatch, plain: list[tuple[int, ...]]
) -> None:
    def off_by_one(state: SlotState, blocks: VerifiedBlocks, split: BudgetSplit) -> None:
        commit(state, replace(blocks, kv_len=blocks.kv_len + error), split)

    monkeypatch.setattr(torch_executor, "commit", off_by_one)
    assert _tokens_differ(plain)


def test_mutation_recent_start_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losslessness does not depend on recent_start, acceptance does."""

    def off_by_one(state: SlotState, blocks: VerifiedBlocks, split: BudgetSplit) -> None:
        commit(state, blocks, split)
        state.recent_start[blocks.slot] += 1

    monkeypatch.setattr(torch_executor, "commit", off_by_one)
    assert _acceptance_of_full_reading(greedy(NEW_TOKENS)) < 1.0


def _tokens_differ(plain: list[tuple[int, ...]]) -> bool:
    llm = LLM(tiny_engine(), Case("pillar", 4, RuntimeConfig()).speculation, RuntimeConfig())
    return first_answers(llm.generate(PROMPTS, greedy(NEW_TOKENS))) != plain


def _acceptance_of_full_reading(params: SamplingParams) -> float:
    speculation = replace(PAPER, k=4, min_budget=BUILD.max_budget, recent_share=1.0)
    outputs = LLM(tiny_engine(), speculation).generate(PROMPTS, params)
    checks = [check for output in outputs for check in output.outputs[0].verifications]
    return sum(check.num_accepted for check in checks) / sum(check.num_drafts for check in checks)
