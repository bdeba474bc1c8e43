"""Distributions against plain numpy, and draws against distributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from chi_square import FALSE_ALARM_RATE, p_value
from sparsespec.runtime.device.sampling import RowSampling, draw, probabilities
from sparsespec.runtime.sampling_params import MAX_STOP_TOKEN_IDS, SamplingParams

VOCAB = 12


@dataclass(frozen=True)
class Row:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    position: int = 10
    min_len: int = 0
    stop_token_ids: tuple[int, ...] = (0,)


def row_sampling(rows: list[Row], dtype: torch.dtype = torch.float64) -> RowSampling:
    stops = [[row.stop_token_ids[i % len(row.stop_token_ids)] for i in range(MAX_STOP_TOKEN_IDS)] for row in rows]
    return RowSampling(
        position=torch.tensor([row.position for row in rows]),
        seed=torch.zeros(len(rows), dtype=torch.int64),
        temperature=torch.tensor([row.temperature for row in rows], dtype=dtype),
        top_k=torch.tensor([row.top_k for row in rows]),
        top_p=torch.tensor([row.top_p for row in rows], dtype=dtype),
        min_len=torch.tensor([row.min_len for row in rows]),
        stop_token_ids=torch.tensor(stops),
    )


def distribution(logits: Tensor, rows: list[Row], dtype: torch.dtype = torch.float64) -> Tensor:
    needs = [SamplingParams(temperature=row.temperature, top_k=row.top_k, top_p=row.top_p).needs for row in rows]
    return probabilities(logits, row_sampling(rows, dtype), needs)


def reference(logits: NDArray[np.float64], row: Row) -> NDArray[np.float64]:
    """One row, token by token."""
    banned = row.stop_token_ids if row.position < row.min_len else ()
    candidates = [token for token in range(len(logits)) if token not in banned]
    candidates.sort(key=lambda token: (-logits[token], token))
    result = np.zeros(len(logits))
    if row.temperature == 0:
        result[candidates[0]] = 1.0
        return result
    if row.top_k:
        candidates = candidates[: row.top_k]
    weights = np.exp((logits[candidates] - logits[candidates[0]]) / row.temperature)
    weights /= weights.sum()
    mass = 0.0
    for token, weight in zip(candidates, weights, strict=True):
        if mass < row.top_p:
            result[token] = weight
        mass += weight
    result /= result.sum()
    return result


row_strategy = st.builds(
    Row,
    temperature=st.sampled_from((0.0, 0.3, 0.7, 1.0, 1.7, 20.0)),
    top_k=st.integers(0, VOCAB + 2),
    top_p=st.sampled_from((1.0, 0.97, 0.83, 0.41, 0.05)),
    position=st.integers(0, 4),
    min_len=st.integers(0, 4),
    stop_token_ids=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3, unique=True).map(tuple),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(row_strategy, min_size=1, max_size=6), st.integers(0, 10_000))
@example([Row(temperature=0.0), Row(), Row(top_k=2), Row(top_p=0.4)], 1)
def test_probabilities_agree_with_numpy(rows: list[Row], seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (len(rows), VOCAB))
    found = distribution(torch.from_numpy(logits), rows).numpy()
    expected = np.stack([reference(values, row) for values, row in zip(logits, rows, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert ((found > 0) == (expected > 0)).all()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (Row(temperature=0.0), [0, 1, 0, 0, 0]),
        (Row(top_k=2), [0, 0.5, 0, 0.5, 0]),
        (Row(top_p=0.6), [0, 0.5, 0, 0.5, 0]),
        (Row(top_k=3, top_p=0.99), [0, 1 / 3, 0, 1 / 3, 1 / 3]),
        (Row(temperature=0.0, min_len=11, stop_token_ids=(1, 3)), [0, 0, 0, 0, 1]),
    ],
)
def test_of_equal_logits_the_lowest_tokens_stay(row: Row, expected: list[float]) -> None:
    logits = torch.tensor([[0.0, 9.0, 0.0, 9.0, 9.0]], dtype=torch.float64)
    found = distribution(logits, [row])
    torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float64), atol=1e-3, rtol=0)
    assert ((found[0] > 0) == (torch.tensor(expected) > 0)).all()


def test_stop_tokens_are_masked_before_min_len_and_not_from_it_on() -> None:
    rows = [Row(position=position, min_len=5, stop_token_ids=(2, 3)) for position in (4, 5)]
    early, due = distribution(torch.zeros(2, 4), rows, torch.float32)
    assert early.tolist() == [0.5, 0.5, 0, 0]
    assert due.tolist() == [0.25] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_fp32_distributions(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = distribution(logits, [Row(), Row(top_p=0.5), Row(temperature=0.0)], torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-38, 1e-44])
def test_a_temperature_near_zero_is_nearly_greedy(temperature: float) -> None:
    """1e-38 is a legal temperature, and logits divided by it overflow fp32."""
    found = distribution(torch.tensor([[5.0, 20.0, -3.0]]), [Row(temperature)], torch.float32)
    assert found.tolist() == [[0, 1, 0]]


def test_a_row_keeps_its_distribution_whoever_shares_its_step() -> None:
    """Bit for bit: a sampled answer may not depend on the batch. Neighbours with cuts, greedy ones, and none."""
    logits = 6 * torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0))
    for row in (Row(), Row(temperature=0.7), Row(top_p=0.9), Row(top_k=50)):
        alone = distribution(logits[:1], [row], torch.float32)[0]
        for other in (Row(top_k=1), Row(temperature=0.0), Row()):
            together = distribution(logits, [row, other, other], torch.float32)[0]
            assert torch.equal(alone, together), (row, other)


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
