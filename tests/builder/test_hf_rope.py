"""Rotary embeddings in a Hugging Face config.json, compared with what transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from sparsespec.builder.checkpoint.hf_config import read_model_config
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling, rope_frequencies

CONFIG: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 8192,
}


def read(directory: Path, **values: object) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps({**CONFIG, **values}))
    return read_model_config(directory)


def read_rope(directory: Path, **values: object) -> tuple[float, RopeScaling | None]:
    model = read(directory, **values)
    return model.rope_theta, model.rope_scaling


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "default"},
        {"type": "linear", "factor": 2},
        {"rope_type": "linear", "type": "yarn", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8,
            "low_freq_factor": 1,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
        {**YARN, "attention_factor": 1.25, "mscale": 0.5, "mscale_all_dim": 2.0},
        {**YARN, "attention_factor": None, "mscale": 0.707, "mscale_all_dim": 1.5},
        {**YARN, "mscale": 0.707},
        {**YARN, "mscale": 0.707, "mscale_all_dim": 0},
        {**YARN, "beta_fast": 8, "beta_slow": 0.5, "truncate": False},
        {**YARN, "beta_fast": None, "beta_slow": 0, "truncate": True},
        {**YARN, "truncate": None},
    ],
    ids=str,
)
def test_rope_is_transformers(tmp_path: Path, scaling: dict[str, Any] | None) -> None:
    model = read(tmp_path, rope_theta=20000.0, rope_scaling=scaling)
    theirs = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(tmp_path))
    found = torch.tensor(rope_frequencies(model.head_dim, model.rope_theta, model.rope_scaling))
    torch.testing.assert_close(found, theirs.inv_freq, rtol=1e-5, atol=0)
    amplitude = 1.0 if model.rope_scaling is None else model.rope_scaling.amplitude
    assert amplitude == pytest.approx(theirs.attention_scaling)
    parameters = {"rope_theta": 20000.0, **(scaling or {"rope_type": "default"})}
    assert read(tmp_path, rope_parameters=parameters) == model


@pytest.mark.parametrize(
    ("values", "theta"),
    [
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 7e5}}, 7e5),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "default", "rope_theta": 6e5}}, 6e5),
        ({"rope_scaling": {}, "rope_parameters": {"rope_theta": 7e5}}, 7e5),
        ({"rope_scaling": {"type": "default", "rope_theta": 6e5}, "rope_parameters": {"rope_theta": 7e5}}, 6e5),
    ],
)
def test_places_of_rope_theta(tmp_path: Path, values: dict[str, object], theta: float) -> None:
    assert read_rope(tmp_path, **values) == (theta, None)


@pytest.mark.parametrize(
    ("in_scaling", "beside", "expected"),
    [(None, None, 8192), (4096, None, 4096), (None, 2048, 2048), (4096, 2048, 2048)],
)
@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_places_of_the_original_context(
    tmp_path: Path, kind: str, in_scaling: int | None, beside: int | None, expected: int
) -> None:
    scaling: dict[str, object] = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": in_scaling}
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    _, found = read_rope(tmp_path, rope_scaling=scaling, original_max_position_embeddings=beside)
    assert isinstance(found, (Llama3Scaling, YarnScaling))
    assert found.original_max_position_embeddings == expected


def test_original_context_is_nothing_to_linear_scaling(tmp_path: Path) -> None:
    values = {"rope_scaling": {"type": "linear", "factor": 4.0}, "original_max_position_embeddings": 2048}
    assert read_rope(tmp_path, **values) == (10000.0, LinearScaling("linear", 4.0))


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (
            {"type": "dynamic", "factor": 2.0},
            "rope_type: expected one of default, linear, .*, found 'dynamic'",
        ),
        ({"rope_type": "longrope", "factor": 2.0}, "rope_type: expected one of .*, found 'longrope'"),
        ({"rope_type": 1}, "rope_type: expected str, found 1"),
        ({"type": "linear"}, "factor: expected float, found nothing"),
        ({"type": "linear", "factor": "2"}, "factor: expected float, found '2'"),
        ({"type": "linear", "factor": True}, "factor: expected float, found True"),
        ({"type": "linear", "factor": 10**400}, "factor: expected a number below 1e308"),
        ({"type": "linear", "factor": 0.5}, "factor must be finite and at least 1, found 0.5"),
        (
            {"type": "linear", "factor": 2.0, "attention_factor": 1.2},
            "attention_factor: expected one of .* for 'linear'",
        ),
        ({"type": "default", "factor": 2.0}, "factor: expected one of .* for 'default', found 2.0"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor: expected float, found nothing"),
        ({**YARN, "attn_factor": 1.0}, "attn_factor: expected one of .* for 'yarn', found 1.0"),
        ({**YARN, "factor": None}, "factor: expected float, found nothing"),
        ({**YARN, "attention_factor": 0}, "attention_factor must be finite and above 0, found 0"),
        ({**YARN, "mscale": -1.0, "mscale_all_dim": 1.0}, "mscale must be finite and above 0, found -1.0"),
        ({**YARN, "beta_fast": 0.5}, "beta_fast must be at least beta_slow 1.0, found 0.5"),
        ({**YARN, "truncate": 1}, "truncate: expected bool, found 1"),
        (
            {**YARN, "original_max_position_embeddings": 0},
            "original_max_position_embeddings must be at least 1, found 0",
        ),
        ({**YARN, "partial_rotary_factor": 0.5}, "partial_rotary_factor: only 1.0 is supported, found 0.5"),
        ({"full_attention": YARN}, "full_attention: expected one of .* for 'default'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("section", ["rope_scaling", "rope_parameters"])
def test_unsupported_or_broken_rope(tmp_path: Path, section: str, scaling: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {section}: {message}"):
        read_rope(tmp_path, **{section: scaling})
