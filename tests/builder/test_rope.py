from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from sparsespec.builder.config_io import from_mapping
from sparsespec.builder.errors import InputError
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.rope import (
    FrequencyDivisors,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
    longest_context,
    rope_frequencies,
    yarn_amplitude,
)
from tiny_models import tiny_hf_config, tiny_model_config


def transformers_rope(head_dim: int, theta: float, scaling: RopeScaling | None) -> tuple[torch.Tensor, float]:
    """Frequencies, computed in fp32, and the factor of cosines and sines."""
    longest = 4096
    if isinstance(scaling, (Llama3Scaling, YarnScaling)):
        # transformers 4 takes the quotient of the two contexts for YaRN's factor.
        longest = int(scaling.original_max_position_embeddings * scaling.factor)
    model = tiny_model_config(head_dim=head_dim, rope_scaling=scaling)
    model = replace(model, rope_theta=theta, max_position_embeddings=longest)
    rope = LlamaRotaryEmbedding(tiny_hf_config(model))
    return rope.inv_freq.double(), float(rope.attention_scaling)


def check_equal(head_dim: int, theta: float, scaling: RopeScaling | None, tolerance: float = 1e-5) -> None:
    expected, amplitude = transformers_rope(head_dim, theta, scaling)
    found = torch.tensor(rope_frequencies(head_dim, theta, scaling), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    assert (1.0 if scaling is None else scaling.amplitude) == amplitude


@pytest.mark.parametrize(
    ("head_dim", "theta", "scaling"),
    [
        (2, 10000.0, None),
        (128, 1e6, None),
        (64, 0.5, None),
        (96, 10000.0, LinearScaling("linear", 2.5)),
        (128, 5e5, Llama3Scaling("llama3", 8.0, 1.0, 4.0, 8192)),
        (64, 5e5, Llama3Scaling("llama3", 32.0, 1.0, 4.0, 8192)),
        (16, 10000.0, Llama3Scaling("llama3", 4.0, 0.1, 200.0, 64)),
        (128, 1e6, YarnScaling("yarn", 4.0, 32.0, 1.0, 32768, yarn_amplitude(4.0))),
        (128, 1e6, YarnScaling("yarn", 4.0, 32.0, 1.0, 32768, 0.7, truncate=False)),
        (64, 10000.0, YarnScaling("yarn", 40.0, 16.0, 2.0, 4096, 1.0)),
        (2, 10000.0, YarnScaling("yarn", 4.0, 32.0, 1.0, 2048, 1.0)),
        # All is kept, all is stretched, and a ramp of no width.
        (16, 10000.0, YarnScaling("yarn", 4.0, 1e-3, 1e-4, 2**20, 1.0)),
        (16, 10000.0, YarnScaling("yarn", 4.0, 1e4, 1e3, 16, 1.0)),
        (16, 10000.0, YarnScaling("yarn", 4.0, 2.0, 2.0, 512, 1.0, truncate=False)),
    ],
    ids=str,
)
def test_frequencies_are_transformers(head_dim: int, theta: float, scaling: RopeScaling | None) -> None:
    check_equal(head_dim, theta, scaling)


def fp32_error(factor: float) -> float:
    """Most that fp32 makes of the frequencies below, relative; in units u = 2^-24 of a rounding.

    A power of theta has ln(theta) + 4 < 20 u, from its rounded exponent. A ramp (x - low) / (high - low) of rounded x
    and low has high / (high - low) times theirs, absolute. YaRN's ends are logarithms: that is at most
    ln(2^17 / 0.2 pi) / ln(1.5) + 4 < 36 u. Llama 3's x is itself a power of theta, at most ln(2^17 / 0.2 pi) + 6 u,
    times 1.5 / 0.5: 55 u. Where the ramp ends, a frequency is 1 / factor of what the ramp mixes in: factor - 1 times
    the ramp's error.
    """
    return (20 + 55 * (factor - 1)) * 2**-24


@settings(max_examples=100, deadline=None, derandomize=True)
@example(head_dim=42, theta=3523549.0, original=6069, factor=11.0, slow=0.359375, ratio=1.5, truncate=False)
@given(
    head_dim=st.integers(1, 96).map(lambda half: 2 * half),
    theta=st.floats(100.0, 1e7),
    original=st.integers(1, 2**17),
    factor=st.integers(1, 64).map(float),
    slow=st.floats(0.1, 8.0),
    ratio=st.floats(1.5, 64.0),
    truncate=st.booleans(),
)
def test_any_ramp_is_transformers(
    head_dim: int, theta: float, original: int, factor: float, slow: float, ratio: float, truncate: bool
) -> None:
    tolerance = fp32_error(factor)
    check_equal(head_dim, theta, Llama3Scaling("llama3", factor, slow, slow * ratio, original), tolerance)
    check_equal(head_dim, theta, YarnScaling("yarn", factor, slow * ratio, slow, original, 1.0, truncate), tolerance)


@settings(max_examples=100, deadline=None)
@given(
    theta=st.floats(1.0, 1e308, exclude_min=True),
    positive=st.tuples(*[st.floats(5e-324, 1e308)] * 2),
    original=st.integers(1, 2**31 - 1),
    factor=st.floats(1.0, 1e308),
    truncate=st.booleans(),
)
def test_extreme_numbers_give_frequencies(
    theta: float, positive: tuple[float, float], original: int, factor: float, truncate: bool
) -> None:
    """Whatever a config may say, nothing overflows."""
    low, high = sorted(positive)
    scalings: list[RopeScaling] = [
        LinearScaling("linear", factor),
        YarnScaling("yarn", factor, high, low, original, 1.0, truncate),
    ]
    if low < high:
        scalings.append(Llama3Scaling("llama3", factor, low, high, original))
    for scaling in scalings:
        assert original <= longest_context(original, scaling) < 2**31
        assert all(0 <= frequency <= 1 for frequency in rope_frequencies(16, theta, scaling))


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, 40960),
        (LinearScaling("linear", 2.5), 102400),
        (Llama3Scaling("llama3", 8.0, 1.0, 4.0, 8192), 40960),
        (YarnScaling("yarn", 4.0, 32.0, 1.0, 32768, 1.0), 131072),  # as Qwen3's own advice has it
        (YarnScaling("yarn", 4.0, 32.0, 1.0, 8192, 1.0), 40960),
        (FrequencyDivisors("divisors", (1.0, 8.0)), 40960),
    ],
    ids=str,
)
def test_how_far_positions_reach(scaling: RopeScaling | None, expected: int) -> None:
    assert longest_context(40960, scaling) == expected


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        LinearScaling("linear", 2.5),
        Llama3Scaling("llama3", 8.0, 1.0, 4.0, 8192),
        YarnScaling("yarn", 4.0, 32.0, 1.0, 32768, 0.7, truncate=False),
    ],
    ids=str,
)
def test_scaled_model_survives_json(scaling: RopeScaling | None) -> None:
    model = tiny_model_config(family="qwen3", rope_scaling=scaling)
    assert from_mapping(ModelConfig, json.loads(json.dumps(asdict(model))), "model") == model


def test_amplitude_of_yarn() -> None:
    """0.1 ln(factor) + 1, as the paper has it."""
    assert yarn_amplitude(math.e) == pytest.approx(1.1)
    assert yarn_amplitude(math.e, mscale=0.5) == pytest.approx(1.05)
    assert yarn_amplitude(1.0) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearScaling("linear", 0.5), "factor must be finite and at least 1, found 0.5"),
        (lambda: LinearScaling("linear", math.nan), "factor must be finite and at least 1, found nan"),
        (lambda: Llama3Scaling("llama3", math.inf, 1.0, 4.0, 8192), "factor must be finite and at least 1, found inf"),
        (lambda: Llama3Scaling("llama3", 8.0, 0.0, 4.0, 8192), "low_freq_factor must be finite and above 0, found 0.0"),
        (lambda: Llama3Scaling("llama3", 8.0, 4.0, 4.0, 8192), "high_freq_factor must be above .* 4.0, found 4.0"),
        (lambda: Llama3Scaling("llama3", 8.0, 1.0, 4.0, 0), "original_max_position_embeddings must be at least 1"),
        (lambda: YarnScaling("yarn", 4.0, 1.0, 32.0, 4096, 1.0), "beta_fast must be at least beta_slow 32.0, found 1"),
        (lambda: YarnScaling("yarn", 4.0, 32.0, -1.0, 4096, 1.0), "beta_slow must be finite and above 0, found -1"),
        (lambda: YarnScaling("yarn", 4.0, 32.0, 1.0, 4096, 0.0), "amplitude must be finite and above 0, found 0"),
        (lambda: YarnScaling("yarn", 4.0, 32.0, 1.0, 2**31, 1.0), "original_max_position_embeddings must be at most"),
    ],
)
def test_scaling_that_makes_no_sense(make: Callable[[], RopeScaling], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
