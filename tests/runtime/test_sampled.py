"""Sampled speculation follows the plain model's distribution, and does not depend on the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from torch import Tensor

from chi_square import FALSE_ALARM_RATE, p_value
from sparsespec.builder.build_config import BuildConfig
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device import torch_executor
from sparsespec.runtime.device.acceptance import Block
from sparsespec.runtime.device.rng import Purpose
from sparsespec.runtime.device.sampling import draw
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
PROMPT = (1, 2, 3, 3, 1, 0, 2, 1) * 4
SPECULATION = SpeculationConfig(k=3, min_budget=6, ratio=0.1)


@dataclass(frozen=True)
class Cut:
    temperature: float
    top_k: int
    top_p: float


def test_chi_square_knows_right_from_wrong() -> None:
    distribution = torch.tensor([0.5, 0.3, 0.2])
    assert p_value(torch.tensor([503, 297, 200]), distribution) > 0.5
    assert p_value(torch.tensor([450, 350, 200]), distribution) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("cut", [Cut(1.0, 0, 1.0), Cut(0.7, 3, 0.95)])
@pytest.mark.parametrize("drafter", ["pillar", "window"])
def test_distribution_is_the_plain_models(cut: Cut, drafter: str) -> None:
    """Chi-square over all sequences of 4 tokens (two or more blocks); false-alarm rate 1e-6 per case."""
    speculation = SpeculationConfig(drafter=drafter, k=3, min_budget=6, ratio=0.1)  # type: ignore[arg-type]
    counts, drafts = _sample_counts(cut, speculation)
    assert drafts.accepted > 0
    assert drafts.rejected > 0
    assert drafts.longest_context > speculation.min_budget
    assert p_value(counts, _exact_distribution(cut)) > FALSE_ALARM_RATE


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


@pytest.mark.parametrize(
    "config",
    [
        RuntimeConfig(max_batch_size=1),
        RuntimeConfig(policy="lockstep"),
        RuntimeConfig(chunk_size=9, result_lag=3),
    ],
)
def test_sampled_tokens_do_not_depend_on_the_batch(config: RuntimeConfig) -> None:
    """A seeded request gives the same tokens alone and in any company, under either policy."""
    prompts = random_prompts((50, 31, 70, 12, 44))
    params = [SamplingParams(max_tokens=40, temperature=0.8, top_p=0.9, seed=i, ignore_eos=True) for i in range(5)]
    speculation = SpeculationConfig(k=4, min_budget=16)
    together = LLM(tiny_engine(), speculation)
    ids = [together.add_request(prompt, own) for prompt, own in zip(prompts, params, strict=True)]
    while together.has_requests:
        together.step()
    other = LLM(tiny_engine(), speculation, config)
    for request_id, prompt, own in zip(ids, prompts, params, strict=True):
        assert first_answers(other.generate([prompt], own)) == first_answers([together.take_output(request_id)])


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
    llm = LLM(tiny_engine(), SpeculationConfig(k=4, min_budget=16))
    outputs = llm.generate(random_prompts((40,)), SamplingParams(max_tokens=60, seed=1, ignore_eos=True))
    assert DraftCounts.of(outputs).rejected > 5
    drafts = [keys for keys in used if keys[2] >= Purpose.DRAFT]
    assert len({position for _, position, _ in drafts}) < len(drafts)  # positions do repeat
    assert len(drafts) == len(dict.fromkeys(drafts))


def _sample_counts(cut: Cut, speculation: SpeculationConfig) -> tuple[Tensor, DraftCounts]:
    params = SamplingParams(
        max_tokens=LENGTH,
        temperature=cut.temperature,
        top_k=cut.top_k,
        top_p=cut.top_p,
        ignore_eos=True,
        n=SAMPLES_PER_SEED,
    )
    llm = LLM(engine_of(tiny_llama(SHAPE, seed=3).double(), SHAPE, MANY_SLOTS), speculation)
    outputs = [llm.generate([PROMPT], replace(params, seed=seed))[0] for seed in SEEDS]
    answers = [answer.token_ids for output in outputs for answer in output.outputs]
    place = [sum(token * VOCAB**i for i, token in enumerate(reversed(answer))) for answer in answers]
    return torch.bincount(torch.tensor(place), minlength=VOCAB**LENGTH), DraftCounts.of(outputs)


def _exact_distribution(cut: Cut) -> Tensor:
    """Probability of every sequence, in the order of itertools.product, by transformers' forward pass."""
    sequences = torch.tensor(list(product(range(VOCAB), repeat=LENGTH)))
    tokens = torch.cat((torch.tensor(PROMPT).expand(len(sequences), -1), sequences), dim=1)
    with torch.inference_mode():
        logits = tiny_llama(SHAPE, seed=3).double()(tokens).logits[:, len(PROMPT) - 1 : -1]
    probabilities = torch.tensor([[_cut_row(row, cut) for row in rows] for rows in logits.tolist()])
    return probabilities.gather(2, sequences[..., None]).squeeze(2).double().prod(dim=1)


def _cut_row(logits: list[float], cut: Cut) -> list[float]:
    """Temperature, top-k, top-p in plain Python."""
    weights = {i: torch.tensor(x / cut.temperature, dtype=torch.float64).exp().item() for i, x in enumerate(logits)}
    ranked = sorted(weights, key=lambda token: -weights[token])[: cut.top_k or None]
    total = sum(weights[token] for token in ranked)
    kept, mass = [], 0.0
    for token in ranked:
        if mass < cut.top_p:
            kept.append(token)
        mass += weights[token] / total
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(VOCAB)]


def _mutant_p_value() -> float:
    cut = Cut(1.0, 0, 1.0)
    return p_value(_sample_counts(cut, SPECULATION)[0], _exact_distribution(cut))
