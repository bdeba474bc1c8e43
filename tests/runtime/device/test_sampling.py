"""Distributions against plain Python, and draws against distributions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from chi_square import FALSE_ALARM_RATE, p_value
from plain_sampling import plain_distribution
from sparsespec.builder.build_config import BuildConfig, DType
from sparsespec.runtime.device.sampling import RowSampling, TokenHistory, count_tokens, draw, probabilities, race
from sparsespec.runtime.device.slot_state import SlotLimits, make_slot_state
from sparsespec.runtime.request import NO_DRAFTS, RequestSpec
from sparsespec.runtime.sampling_params import SamplingParams
from tiny_models import tiny_model_config

VOCAB = 12
LEFT_OVER = 5  # a token that stands, uncounted, wherever a slot's buffer holds nothing of its request


@dataclass(frozen=True)
class Row:
    """The row that decides the token after prompt and output."""

    params: SamplingParams = SamplingParams()
    prompt: tuple[int, ...] = (0, 1)
    output: tuple[int, ...] = ()


def row_sampling(rows: list[Row], dtype: DType = "float64") -> RowSampling:
    """Each row in a slot of its own."""
    build = BuildConfig(
        dtype=dtype, max_batch_size=len(rows), max_seq_len=32, max_num_tokens=32, max_draft_len=3, max_budget=32
    )
    state = make_slot_state(
        tiny_model_config(),
        build,
        SlotLimits(len(rows), 3, max_lookups=0, score_history=False, draft_probs=True),
        torch.device("cpu"),
    )
    state.token_ids.fill_(LEFT_OVER)
    for slot, row in enumerate(rows):
        state.admit(slot, spec_of(row))
        place = slice(len(row.prompt), len(row.prompt + row.output))
        state.token_ids[slot, place] = torch.tensor(row.output, dtype=torch.int64)
    position = torch.tensor([len(row.prompt + row.output) for row in rows])
    return RowSampling.of(state, torch.arange(len(rows)), position)


def spec_of(row: Row) -> RequestSpec:
    return RequestSpec(
        request_id=0,
        prompt_token_ids=row.prompt,
        params=row.params,
        seed=0,
        stop_token_ids=row.params.stop_token_ids,
        max_tokens=16,
        drafts=NO_DRAFTS,
    )


def distribution(logits: Tensor, rows: list[Row], dtype: DType = "float64") -> Tensor:
    return probabilities(logits, row_sampling(rows, dtype), [row.params.needs for row in rows])


params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from((0.0, 0.3, 0.7, 1.0, 1.7, 20.0)),
    top_k=st.integers(0, VOCAB + 2),
    top_p=st.sampled_from((1.0, 0.97, 0.83, 0.41, 0.05)),
    min_p=st.sampled_from((0.0, 0.0, 0.02, 0.3, 1.0)),
    repetition_penalty=st.sampled_from((1.0, 1.0, 0.4, 1.7)),
    presence_penalty=st.sampled_from((0.0, 0.0, -1.5, 2.0)),
    frequency_penalty=st.sampled_from((0.0, 0.0, -0.7, 1.1)),
    min_tokens=st.integers(0, 6),
    stop_token_ids=st.lists(st.integers(0, VOCAB - 1), max_size=3, unique=True).map(tuple),
)
few_tokens = st.lists(st.integers(0, 6), max_size=6).map(tuple)
row_strategy = st.builds(Row, params_strategy, prompt=few_tokens.filter(any), output=few_tokens)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(row_strategy, min_size=1, max_size=6), st.integers(0, 10_000))
@example([Row(SamplingParams(temperature=0.0)), Row(), Row(SamplingParams(top_k=2))], 1)
def test_probabilities_agree_with_plain_python(rows: list[Row], seed: int) -> None:
    logits = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    found = distribution(logits, rows)
    plain = [
        plain_distribution(values, row.params, row.prompt, row.output)
        for values, row in zip(logits.tolist(), rows, strict=True)
    ]
    expected = torch.tensor(plain, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(found > 0, expected > 0)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (Row(SamplingParams(temperature=0.0)), [0, 1, 0, 0, 0]),
        (Row(SamplingParams(top_k=2)), [0, 0.5, 0, 0.5, 0]),
        (Row(SamplingParams(top_p=0.6)), [0, 0.5, 0, 0.5, 0]),
        (Row(SamplingParams(top_k=3, top_p=0.99)), [0, 1 / 3, 0, 1 / 3, 1 / 3]),
        (Row(SamplingParams(min_p=1.0, top_p=0.6)), [0, 0.5, 0, 0.5, 0]),
        (Row(SamplingParams(temperature=0.0, min_tokens=1, stop_token_ids=(1, 3))), [0, 0, 0, 0, 1]),
    ],
)
def test_of_equal_logits_the_lowest_tokens_stay(row: Row, expected: list[float]) -> None:
    logits = torch.tensor([[0.0, 9.0, 0.0, 9.0, 9.0]], dtype=torch.float64)
    found = distribution(logits, [row])
    torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float64), atol=1e-3, rtol=0)
    assert ((found[0] > 0) == (torch.tensor(expected) > 0)).all()


def test_stop_tokens_are_masked_before_min_len_and_not_from_it_on() -> None:
    rows = [Row(SamplingParams(min_tokens=3, stop_token_ids=(2, 3)), output=output) for output in ((2, 1), (2, 1, 1))]
    early, due = distribution(torch.zeros(2, 4), rows, "float32")
    assert early.tolist() == [0.5, 0.5, 0, 0]
    assert due.tolist() == [0.25] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_fp32_distributions(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = distribution(
        logits, [Row(), Row(SamplingParams(top_p=0.5)), Row(SamplingParams(temperature=0.0))], "float32"
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-38, 1e-44])
def test_a_temperature_near_zero_is_nearly_greedy(temperature: float) -> None:
    """1e-38 is a legal temperature, and logits divided by it overflow fp32."""
    found = distribution(torch.tensor([[5.0, 20.0, -3.0]]), [Row(SamplingParams(temperature=temperature))], "float32")
    assert found.tolist() == [[0, 1, 0]]


def test_a_row_keeps_its_distribution_whoever_shares_its_step() -> None:
    """Bit for bit: a sampled answer may not depend on the batch."""
    logits = 6 * torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0))
    said = (5, 3, 5)
    kinds = [
        Row(output=said),
        Row(SamplingParams(temperature=0.0), output=said),
        Row(SamplingParams(temperature=0.7), output=said),
        Row(SamplingParams(top_p=0.9), output=said),
        Row(SamplingParams(top_k=50), output=said),
        Row(SamplingParams(min_p=0.05), output=said),
        Row(SamplingParams(presence_penalty=1.0), output=said),
        Row(SamplingParams(repetition_penalty=1.3, frequency_penalty=-0.4, min_p=0.01, top_p=0.9), output=said),
    ]
    for row in kinds:
        alone = distribution(logits[:1], [row], "float32")[0]
        for other in kinds:
            together = distribution(logits, [row, other, other], "float32")[0]
            assert torch.equal(alone, together), (row, other)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_tokens_are_counted_up_to_the_position_of_their_row(device: str) -> None:
    """Rows of one slot count the drafts before them; nothing counts rejected drafts or what a former owner left."""
    prompts = [(1, 1, 2), (3,)]
    text = [[1, 1, 2, 4, 6, 6, 4, 0, 7, 7], [3, 2, 3, 3, 7, 7, 7, 7, 7, 7]]
    slot, position = [0, 1, 0, 0, 1, 0], [5, 4, 6, 8, 3, 7]
    one_row = row_sampling([Row()])
    rows = replace(
        one_row,
        history=TokenHistory(
            token_ids=torch.tensor(text, device=device),
            prompt_len=torch.tensor([len(prompt) for prompt in prompts], device=device),
            draft_len=3,
        ),
        slot=torch.tensor(slot, device=device),
        position=torch.tensor(position, device=device),
    )
    in_prompt, in_output = count_tokens(rows, 8)
    for row, (owner, end) in enumerate(zip(slot, position, strict=True)):
        assert in_prompt[row].tolist() == [prompts[owner].count(token) for token in range(8)]
        assert in_output[row].tolist() == [text[owner][len(prompts[owner]) : end].count(token) for token in range(8)]


def test_the_smallest_penalty_leaves_a_distribution() -> None:
    """Positive logits divided by it overflow fp32."""
    row = Row(SamplingParams(repetition_penalty=1e-44), output=(2,))
    found = distribution(torch.tensor([[-3.0, 0.0, 20.0, 1.0, 2.0, 3.0]]), [row], "float32")
    assert found.tolist() == [[0, 0, 1, 0, 0, 0]]


def even_grid(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.float64) / size


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    """Chi-square at a false-alarm rate of 1e-6; the distribution is not normalised."""
    distribution = torch.tensor([3.0, 0.0, 0.5, 1.5, 0.0, 4.0, 1.0])
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = draw(distribution.expand(len(uniform), -1), uniform)
    assert p_value(tokens.bincount(minlength=7), distribution) > FALSE_ALARM_RATE


def test_draws_split_the_unit_interval_exactly() -> None:
    distribution = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.125, 0.125, 0.0])
    tokens = draw(distribution.expand(1024, -1), even_grid(1024))
    assert tokens.bincount(minlength=7).tolist() == [0, 256, 0, 512, 128, 128, 0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from((0.0, 0.0, 1e-30, 1e-9, 0.1, 1 / 3, 7.0)), min_size=1, max_size=20).filter(any),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=10),
)
def test_tokens_of_zero_probability_are_never_drawn(weights: list[float], uniform: list[float]) -> None:
    """At both ends of the interval as well."""
    numbers = torch.tensor([*uniform, 0.0, 1 - 2.0**-53], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        distribution = torch.tensor(weights, dtype=dtype).expand(len(numbers), -1)
        assert (distribution.gather(1, draw(distribution, numbers)[:, None]) > 0).all()


def test_races_have_the_frequencies_of_the_distribution() -> None:
    """Chi-square at a false-alarm rate of 1e-6; tokens without probability never win."""
    weights = torch.tensor([0.02, 0.5, 0.0, 0.3, 0.18], dtype=torch.float64)
    position = torch.arange(50_000)
    drawn = race(weights.expand(len(position), -1), torch.full_like(position, 7), position)
    assert p_value(drawn.bincount(minlength=5), weights) > FALSE_ALARM_RATE


def test_similar_distributions_have_the_same_winner_as_often_as_the_theory_says() -> None:
    """Sum over tokens i of 1 / sum over j of max(p_j / p_i, q_j / q_i); five standard deviations of 40,000 races."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.4, 0.2, 0.4], dtype=torch.float64)
    position = torch.arange(40_000)
    seed = torch.full_like(position, 1)
    winners = [race(each.expand(len(position), -1), seed, position) for each in (p, q)]
    ratios = torch.maximum(p[None] / p[:, None], q[None] / q[:, None])
    expected = float((1 / ratios.sum(dim=1)).sum())
    agreed = float((winners[0] == winners[1]).double().mean())
    assert abs(agreed - expected) < 5 * (expected * (1 - expected) / len(position)) ** 0.5
