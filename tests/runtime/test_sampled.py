"""Sampled speculation follows the plain model's distribution, and does not depend on the batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod

import pytest
import torch
from torch import Tensor

from chi_square import FALSE_ALARM_RATE, p_value
from plain_sampling import plain_distribution
from random_cycles import RandomCycles
from sparsespec.builder.build_config import BuildConfig
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.cycles import Cycles
from sparsespec.runtime.device import torch_executor
from sparsespec.runtime.device.acceptance import Block
from sparsespec.runtime.device.drafter import NgramDrafter, Select
from sparsespec.runtime.device.rng import Purpose
from sparsespec.runtime.device.sampling import draw
from sparsespec.runtime.device.step_batch import StepBatch, StepMemory
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.sampling_params import SamplingParams
from tiny_llm import DraftCounts, engine_of, first_answers, random_prompts, tiny_engine
from tiny_models import tiny_llama, tiny_model_config

VOCAB, LENGTH = 4, 4
SEEDS, SAMPLES_PER_SEED = (0, 10_000, 20_000), 1000
SHAPE = tiny_model_config(num_layers=1, hidden_size=32, num_heads=2, num_kv_heads=1, vocab_size=VOCAB)
MANY_SLOTS = BuildConfig(
    dtype="float64", max_batch_size=50, max_seq_len=64, max_num_tokens=200, max_draft_len=3, max_budget=64
)
PROMPT = (1, 2, 2, 2, 1, 1, 2, 1) * 4  # tokens 0 and 3 are repeated only once the answer has them
SPECULATION = SpeculationConfig(
    drafter="pillar", k=3, min_budget=6, ratio=0.1, recent_share=0.17, moving_share=0.0, max_lookups=0, min_ngram=1
)
DRAFTERS = {
    "pillar": SPECULATION,
    "window": replace(SPECULATION, drafter="window"),
    # One recent token, two that move, one looked up and two that stay.
    "all": replace(SPECULATION, moving_share=0.34, moving_from="diagonal", max_lookups=1),
    "last": replace(SPECULATION, moving_share=0.34, moving_from="last", ranking="accepted"),
    "average": replace(SPECULATION, moving_share=0.34, moving_from="diagonal", max_lookups=1, ranking="average"),
    "oracle": replace(SPECULATION, drafter="oracle"),
    "ngram": replace(SPECULATION, drafter="ngram"),
}
MOSTLY_SLOW = ["pillar", *(pytest.param(name, marks=pytest.mark.slow) for name in DRAFTERS if name != "pillar")]
PLAIN_RULE = SamplingParams(max_tokens=LENGTH, ignore_eos=True)
EVERYTHING = replace(  # chosen so that leaving any one out changes the distribution by far
    PLAIN_RULE,
    temperature=0.8,
    top_k=3,
    top_p=0.9,
    min_p=0.15,
    repetition_penalty=0.6,
    presence_penalty=0.8,
    frequency_penalty=0.5,
)


def test_chi_square_knows_right_from_wrong() -> None:
    distribution = torch.tensor([0.5, 0.3, 0.2])
    assert p_value(torch.tensor([503, 297, 200]), distribution) > 0.5
    assert p_value(torch.tensor([450, 350, 200]), distribution) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [
        PLAIN_RULE,
        replace(PLAIN_RULE, temperature=0.7),
        replace(PLAIN_RULE, top_k=3),
        replace(PLAIN_RULE, top_p=0.9),
        replace(PLAIN_RULE, min_p=0.2),
        replace(PLAIN_RULE, repetition_penalty=1.8),
        replace(PLAIN_RULE, presence_penalty=1.2),
        replace(PLAIN_RULE, frequency_penalty=0.9),
    ],
    ids=["plain", "temperature", "top_k", "top_p", "min_p", "repetition", "presence", "frequency"],
)
def test_distribution_is_the_plain_models(rule: SamplingParams) -> None:
    _check_distribution(rule, SPECULATION)


@pytest.mark.parametrize("drafter", MOSTLY_SLOW)
def test_distribution_of_all_parameters_together(drafter: str) -> None:
    """Also where drafts follow from scores of rows that were rejected, from the text, or from earlier averages."""
    _check_distribution(EVERYTHING, DRAFTERS[drafter])


def test_distribution_with_cycles_of_any_length() -> None:
    """Also where a cycle begins with a plain step's row, or follows a block that it did not fill."""
    _check_distribution(EVERYTHING, SPECULATION, RandomCycles(7))


@pytest.mark.slow
def test_answers_of_one_request_are_independent() -> None:
    """Chi-square over the first 2 tokens of an answer and of the next one together."""
    rule = replace(EVERYTHING, max_tokens=2)
    pairs, _ = _sample_counts(rule, SPECULATION, group=2)
    single = _exact_distribution(rule)
    assert p_value(pairs, torch.outer(single, single).flatten()) > FALSE_ALARM_RATE


@pytest.mark.slow
def test_mutation_accept_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_executor, "count_accepted", lambda block, _uniform: block.num_drafts.clone())
    assert _mutant_p_value() < FALSE_ALARM_RATE


@pytest.mark.slow
def test_mutation_rejected_token_drawn_from_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_residual(block: Block, num_accepted: Tensor, uniform: Tensor) -> Tensor:
        return draw(block.target_probs[torch.arange(len(num_accepted)), num_accepted], uniform)

    monkeypatch.setattr(torch_executor, "next_token", no_residual)
    assert _mutant_p_value() < FALSE_ALARM_RATE


@pytest.mark.slow
def test_mutation_same_number_for_draft_and_acceptance(monkeypatch: pytest.MonkeyPatch) -> None:
    uniform = torch_executor.uniform

    def one_purpose(seed: Tensor, position: Tensor, purpose: Tensor) -> Tensor:
        return uniform(seed, position, torch.full_like(purpose, Purpose.TARGET))

    monkeypatch.setattr(torch_executor, "uniform", one_purpose)
    assert _mutant_p_value() < FALSE_ALARM_RATE


@pytest.mark.slow
def test_mutation_copied_drafts_that_are_not_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft's distribution is whatever the slot's memory held before."""
    plan = NgramDrafter.plan

    def keeps_draft_probs(self: NgramDrafter, memory: StepMemory, batch: StepBatch, select: Select) -> None:
        before = memory.state.draft_probs.clone()
        plan(self, memory, batch, select)
        memory.state.draft_probs.copy_(before)

    monkeypatch.setattr(NgramDrafter, "plan", keeps_draft_probs)
    assert _mutant_p_value(DRAFTERS["ngram"]) < FALSE_ALARM_RATE


@pytest.mark.parametrize(
    ("drafter", "config"),
    [
        ("pillar", RuntimeConfig(max_batch_size=1)),
        ("pillar", RuntimeConfig(policy="lockstep")),
        ("pillar", RuntimeConfig(chunk_size=9, result_lag=3)),
        *(
            pytest.param(drafter, config, marks=pytest.mark.slow)
            for drafter in DRAFTERS
            if drafter != "pillar"
            for config in (RuntimeConfig(max_batch_size=1), RuntimeConfig(policy="lockstep", chunk_size=9))
        ),
    ],
)
def test_sampled_tokens_do_not_depend_on_the_batch(drafter: str, config: RuntimeConfig) -> None:
    """A seeded request gives the same tokens alone and in any company, under either policy, whoever drafts."""
    prompts = random_prompts((50, 31, 70, 12, 44, 25))
    kinds = [
        SamplingParams(temperature=0.8, top_p=0.9),
        SamplingParams(temperature=0.8, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.4),
        SamplingParams(min_p=0.05, frequency_penalty=-0.2, logprobs=2),
        SamplingParams(temperature=0.0, presence_penalty=1.0),
        SamplingParams(temperature=0.0, logprobs=1),
        SamplingParams(temperature=1.2, top_k=20, repetition_penalty=0.9, speculate=False),
    ]
    params = [replace(kind, max_tokens=40, seed=seed, ignore_eos=True) for seed, kind in enumerate(kinds)]
    speculation = replace(DRAFTERS[drafter], k=4, min_budget=16)
    together = LLM(tiny_engine(), speculation)
    ids = [together.add_request(prompt, own) for prompt, own in zip(prompts, params, strict=True)]
    while together.has_requests:
        together.step()
    other = LLM(tiny_engine(), speculation, config)
    for request_id, prompt, own in zip(ids, prompts, params, strict=True):
        assert first_answers(other.generate([prompt], own)) == first_answers([together.take_output(request_id)])


def test_an_answer_is_the_request_of_its_own_seed() -> None:
    params = replace(EVERYTHING, max_tokens=25, top_k=60, n=4, seed=90)
    prompt, speculation = random_prompts((30,)), SpeculationConfig(k=4, min_budget=16)
    answers = [answer.token_ids for answer in LLM(tiny_engine(), speculation).generate(prompt, params)[0].outputs]
    alone = LLM(tiny_engine(), speculation)
    assert answers == [first_answers(alone.generate(prompt, replace(params, n=1, seed=90 + i)))[0] for i in range(4)]
    assert len(dict.fromkeys(answers)) == 4


def test_seeds() -> None:
    llm = LLM(tiny_engine())
    prompt = random_prompts((30,))

    def run(seed: int | None) -> tuple[int, ...]:
        return first_answers(llm.generate(prompt, SamplingParams(max_tokens=30, seed=seed, ignore_eos=True)))[0]

    assert run(5) == run(5)
    assert run(5) != run(6)
    assert run(None) != run(None)


def test_no_draft_is_drawn_with_a_number_used_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions whose drafts were discarded are drafted again: afresh, for the reason that rng.Purpose gives."""
    used: list[tuple[int, ...]] = []
    uniform = torch_executor.uniform

    def recording(seed: Tensor, position: Tensor, purpose: Tensor) -> Tensor:
        keys = torch.broadcast_tensors(seed, position, purpose)
        used.extend(zip(*(key.flatten().tolist() for key in keys), strict=True))
        return uniform(seed, position, purpose)

    monkeypatch.setattr(torch_executor, "uniform", recording)
    llm = LLM(tiny_engine(), replace(DRAFTERS["average"], k=4, min_budget=16))
    outputs = llm.generate(random_prompts((40,)), SamplingParams(max_tokens=60, seed=1, ignore_eos=True))
    assert DraftCounts.of(outputs).rejected > 5
    drafts = [keys for keys in used if keys[2] >= Purpose.DRAFT]
    assert len({position for _, position, _ in drafts}) < len(drafts)  # positions do repeat
    assert len(drafts) == len(dict.fromkeys(drafts))


def _check_distribution(rule: SamplingParams, speculation: SpeculationConfig, cycles: Cycles | None = None) -> None:
    """Chi-square over all sequences of 4 tokens (two or more blocks); false-alarm rate 1e-6 per case."""
    counts, drafts = _sample_counts(rule, speculation, cycles=cycles)
    assert drafts.accepted > 0
    assert drafts.rejected > 0
    assert drafts.longest_context > speculation.min_budget
    assert p_value(counts, _exact_distribution(rule)) > FALSE_ALARM_RATE


def _sample_counts(
    rule: SamplingParams, speculation: SpeculationConfig, group: int = 1, cycles: Cycles | None = None
) -> tuple[Tensor, DraftCounts]:
    """How often every sequence came up, or every `group` of sequences that successive answers are."""
    llm = LLM(engine_of(tiny_llama(SHAPE, seed=3).double(), SHAPE, MANY_SLOTS), speculation, cycles=cycles)
    outputs = [llm.generate([PROMPT], replace(rule, seed=seed, n=SAMPLES_PER_SEED))[0] for seed in SEEDS]
    tokens = torch.tensor([answer.token_ids for output in outputs for answer in output.outputs]).reshape(
        -1, group * rule.max_tokens
    )
    place = (tokens * VOCAB ** torch.arange(tokens.shape[1]).flip(0)).sum(dim=1)
    return torch.bincount(place, minlength=VOCAB ** tokens.shape[1]), DraftCounts.of(outputs)


def _exact_distribution(rule: SamplingParams) -> Tensor:
    """Probability of every sequence, in the order of itertools.product, by transformers' forward pass."""
    sequences = list(product(range(VOCAB), repeat=rule.max_tokens))
    with torch.inference_mode():
        tokens = torch.tensor([PROMPT + sequence for sequence in sequences])
        logits = tiny_llama(SHAPE, seed=3).double()(tokens).logits[:, len(PROMPT) - 1 : -1].tolist()
    return torch.tensor(
        [
            prod(
                plain_distribution(row, rule, PROMPT, sequence[:index])[sequence[index]]
                for index, row in enumerate(rows)
            )
            for sequence, rows in zip(sequences, logits, strict=True)
        ],
        dtype=torch.float64,
    )


def _mutant_p_value(speculation: SpeculationConfig = SPECULATION) -> float:
    return p_value(_sample_counts(PLAIN_RULE, speculation)[0], _exact_distribution(PLAIN_RULE))
