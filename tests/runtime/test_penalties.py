"""Penalties count the same tokens in a draft, in its verification and in plain decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from plain_sampling import plain_distribution
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device import sampling
from sparsespec.runtime.device.sampling import RowSampling, count_tokens
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import RequestOutput
from sparsespec.runtime.sampling_params import SamplingParams
from tiny_llm import BUILD, DraftCounts, engine_of, first_answers, greedy, random_prompts, tiny_engine
from tiny_models import tiny_llama, tiny_model_config

NEW_TOKENS = 48
MODEL = tiny_model_config(vocab_size=24)  # few tokens, so that blocks repeat their own
PROMPTS = tuple(random_prompts((60, 7, 33, 97), vocab_size=12))  # and many of them first repeated by the answer
REPETITION = replace(greedy(NEW_TOKENS), repetition_penalty=1.3)
PRESENCE = replace(greedy(NEW_TOKENS), presence_penalty=1.5)
FREQUENCY = replace(greedy(NEW_TOKENS), frequency_penalty=0.7)
ALL_THREE = replace(
    greedy(NEW_TOKENS), repetition_penalty=1.1, presence_penalty=-0.6, frequency_penalty=1.2, min_tokens=30
)
PENALTIES = {"repetition": REPETITION, "presence": PRESENCE, "frequency": FREQUENCY, "all": ALL_THREE}
COMPANIES = {
    "none": [],
    "greedy": [greedy(30)],
    "plain": [replace(greedy(30), speculate=False), replace(PRESENCE, speculate=False)],
    "sampled": [
        SamplingParams(max_tokens=40, seed=1, top_p=0.9, ignore_eos=True),
        SamplingParams(max_tokens=20, seed=2, min_p=0.1, frequency_penalty=-1.0, logprobs=2),
    ],
}


@pytest.mark.parametrize("params", PENALTIES.values(), ids=PENALTIES)
def test_plain_decoding_follows_the_rule(params: SamplingParams) -> None:
    """What everything below is compared with, against transformers' logits and the rule in plain Python."""
    hf_model = tiny_llama(MODEL).double()
    plain = replace(params, max_tokens=24, min_tokens=min(params.min_tokens, 24), speculate=False)
    answer = _answers(LLM(engine_of(hf_model, MODEL)), [plain], PROMPTS[1:2])[0]
    with torch.inference_mode():
        logits = hf_model(torch.tensor([PROMPTS[1] + answer])).logits[0, len(PROMPTS[1]) - 1 : -1].tolist()
    for index, row in enumerate(logits):
        assert plain_distribution(row, plain, PROMPTS[1], answer[:index])[answer[index]] == 1.0
    unpenalised = _answers(LLM(engine_of(hf_model, MODEL)), [greedy(24)], PROMPTS[1:2])[0]
    assert answer != unpenalised


@pytest.mark.parametrize("company", COMPANIES)
@pytest.mark.parametrize("drafter", ["pillar", "window"])
def test_greedy_speculation_gives_plain_decodings_tokens(drafter: str, company: str) -> None:
    """In fp64, whoever shares the steps; every request has a penalty of another kind."""
    speculation = SpeculationConfig(drafter=drafter, k=4, min_budget=24)  # type: ignore[arg-type]
    llm = LLM(tiny_engine(model=MODEL), speculation, RuntimeConfig(chunk_size=40))
    for neighbour in COMPANIES[company]:
        llm.add_request(PROMPTS[2], neighbour)
    outputs = _outputs(llm, list(PENALTIES.values()))
    assert first_answers(outputs) == _plain_answers()
    counts = DraftCounts.of(outputs)
    assert counts.accepted > 0
    assert counts.rejected > 0
    assert counts.longest_context > speculation.min_budget


@pytest.mark.parametrize("k", [1, 16])
def test_to_the_end_of_max_seq_len(k: int) -> None:
    """The last blocks reach into the buffer's last positions."""
    prompt = tuple(random_prompts((BUILD.max_seq_len - NEW_TOKENS // 2,), vocab_size=12))
    answers = [
        _answers(
            LLM(tiny_engine(model=MODEL), SpeculationConfig(k=k, min_budget=24)),
            [replace(ALL_THREE, speculate=on)],
            prompt,
        )
        for on in (True, False)
    ]
    assert answers[0] == answers[1]
    assert len(answers[0][0]) == NEW_TOKENS // 2


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_that_read_everything_are_all_accepted(temperature: float) -> None:
    """A draft row counts what its verification counts."""
    params = replace(ALL_THREE, temperature=temperature, min_p=0.01, seed=5)
    reads_everything = SpeculationConfig(k=4, min_budget=BUILD.max_budget, recent_share=1.0)
    assert DraftCounts.of(_outputs(LLM(tiny_engine(model=MODEL), reads_everything), [params] * 4)).rejected == 0


def test_a_slot_forgets_its_former_request() -> None:
    llm = LLM(tiny_engine(model=MODEL), SpeculationConfig(k=4, min_budget=24), RuntimeConfig(max_batch_size=1))
    assert first_answers(_outputs(llm, list(PENALTIES.values()))) == _plain_answers()


def _without_the_blocks_drafts(rows: RowSampling, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Every row of a verification counts what its first row counts."""
    first = [min(rows.position[rows.slot == slot].tolist()) for slot in rows.slot]
    return count_tokens(replace(rows, position=torch.tensor(first, dtype=torch.int64)), vocab_size)


def _with_the_row_itself(rows: RowSampling, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Rows count the token at their own position too: a rejected draft, or one being verified."""
    return count_tokens(replace(rows, position=rows.position + 1), vocab_size)


@pytest.mark.parametrize("params", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("mutant", [_without_the_blocks_drafts, _with_the_row_itself])
def test_mutation_of_what_a_row_counts(
    mutant: Callable[[RowSampling, int], tuple[Tensor, Tensor]],
    params: SamplingParams,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speculation = SpeculationConfig(k=4, min_budget=24)
    expected = _answers(LLM(tiny_engine(model=MODEL), speculation), [params] * 4)
    monkeypatch.setattr(sampling, "count_tokens", mutant)
    assert _answers(LLM(tiny_engine(model=MODEL), speculation), [params] * 4) != expected


def test_log_probabilities_are_the_models_before_penalties() -> None:
    """Of accepted drafts, of the tokens that replace rejected ones, and of those that follow a fully accepted block."""
    hf_model = tiny_llama(MODEL).double()
    llm = LLM(engine_of(hf_model, MODEL), SpeculationConfig(k=2, min_budget=24))
    params = replace(ALL_THREE, temperature=0.7, min_p=0.02, top_k=20, seed=4, logprobs=2)
    outputs = _outputs(llm, [params] * 4)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        told = output.outputs[0].logprobs
        answer = output.outputs[0].token_ids
        with torch.inference_mode():
            rows = hf_model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(dim=1)
        assert tuple(entry.token_id for entry in told) == answer
        for row, entry in zip(rows, told, strict=True):  # transformers rotates in fp32 even for an fp64 model
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-5)
            assert [value for _, value in entry.top] == pytest.approx(row.topk(2).values.tolist(), abs=1e-5)
    checks = [check for output in outputs for check in output.outputs[0].verifications]
    assert len(dict.fromkeys(check.num_accepted for check in checks)) == 3


def _plain_answers() -> list[tuple[int, ...]]:
    return _answers(LLM(tiny_engine(model=MODEL), SpeculationConfig(drafter="none")), list(PENALTIES.values()))


def _answers(
    llm: LLM, params: list[SamplingParams], prompts: tuple[tuple[int, ...], ...] = PROMPTS
) -> list[tuple[int, ...]]:
    return first_answers(_outputs(llm, params, prompts))


def _outputs(
    llm: LLM, params: list[SamplingParams], prompts: tuple[tuple[int, ...], ...] = PROMPTS
) -> list[RequestOutput]:
    """Each prompt with the parameters at its place, in one batch."""
    request_ids = [llm.add_request(prompt, own) for prompt, own in zip(prompts, params, strict=True)]
    while llm.has_requests:
        llm.step()
    return [llm.take_output(request_id) for request_id in request_ids]
