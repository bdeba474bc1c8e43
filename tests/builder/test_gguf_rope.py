from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import gguf
import numpy as np
import pytest

from sparsespec.builder.checkpoint.gguf_config import read_model_config
from sparsespec.builder.checkpoint.gguf_reader import GgufMetadata
from sparsespec.builder.config_io import from_mapping
from sparsespec.builder.errors import CheckpointError, InputError
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.rope import FrequencyDivisors, LinearScaling, RopeScaling, YarnScaling, rope_frequencies
from tiny_gguf import finish
from tiny_models import tiny_model_config

Options = dict[str, str | float | int]

NATURAL = 0.1 * math.log(4) + 1
YARN: Options = {"scaling.type": "yarn", "scaling.factor": 4.0}


def scaling_of(path: Path, options: Options, divisors: list[float] | None = None) -> RopeScaling | None:
    """What a file with these keys under `llama.rope` says; its context is 512, its head_dim 8."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["a", "b"])
    writer.add_embedding_length(16)
    writer.add_head_count(2)
    writer.add_feed_forward_length(32)
    writer.add_block_count(1)
    writer.add_context_length(512)
    for name, value in options.items():
        writer.add_key_value(f"llama.rope.{name}", value, gguf.GGUFValueType.get_type(value))
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))
    finish(writer)
    return read_model_config(GgufMetadata(path)).rope_scaling


def yarn(amplitude: float = NATURAL, beta_fast: float = 32.0, original: int = 512) -> YarnScaling:
    return YarnScaling("yarn", 4.0, beta_fast, 1.0, original, amplitude)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"scaling.type": "none", "scaling.factor": 4.0}, None),
        ({"scaling.type": "linear"}, None),
        ({"scaling.type": "linear", "scaling.factor": 0.0}, None),
        ({"scaling.type": "linear", "scaling.factor": 1.0}, None),
        ({"scaling.type": "linear", "scaling.factor": 2.5}, LinearScaling("linear", 2.5)),
        ({"scaling.factor": 2.5}, LinearScaling("linear", 2.5)),
        ({"scale_linear": 2.5}, LinearScaling("linear", 2.5)),
        (YARN, yarn()),
        ({**YARN, "scaling.original_context_length": 128}, yarn(original=128)),
        ({**YARN, "scaling.yarn_beta_fast": 16.0}, yarn(beta_fast=16.0)),
        ({**YARN, "scaling.attn_factor": 2.0}, yarn(2 * NATURAL)),
        ({**YARN, "scaling.yarn_attn_factor": NATURAL, "scaling.yarn_ext_factor": 1.0}, yarn()),
    ],
)
def test_scaling(options: Options, expected: RopeScaling | None, tmp_path: Path) -> None:
    assert scaling_of(tmp_path / "x.gguf", options) == expected


def test_divisors(tmp_path: Path) -> None:
    assert scaling_of(tmp_path / "x.gguf", {}, [1.0, 1.5, 4.0, 8.0]) == FrequencyDivisors("divisors", (1, 1.5, 4, 8))
    linear: Options = {"scaling.type": "linear", "scaling.factor": 2.0}
    both = FrequencyDivisors("divisors", (2, 3, 8, 16))
    assert scaling_of(tmp_path / "y.gguf", linear, [1.0, 1.5, 4.0, 8.0]) == both
    assert rope_frequencies(8, 16.0, both) == [1 / 2, 1 / 2 / 3, 1 / 4 / 8, 1 / 8 / 16]


def test_divisors_in_an_engine() -> None:
    model = tiny_model_config(rope_scaling=FrequencyDivisors("divisors", (1.0, 2.5)))
    assert from_mapping(ModelConfig, json.loads(json.dumps(asdict(model))), "model") == model
    with pytest.raises(InputError, match="divisors: expected 8, half of head_dim, found 2"):
        rope_frequencies(model.head_dim, model.rope_theta, model.rope_scaling)


@pytest.mark.parametrize(
    ("options", "divisors", "message"),
    [
        ({"scaling.type": "longrope"}, None, "scaling.type: expected one of none, linear, yarn, found 'longrope'"),
        ({"scaling.type": 7}, None, "scaling.type: expected str, found 7"),
        ({"scaling.alpha": 2.0}, None, "llama.rope.scaling.alpha: not supported"),
        ({"scaling.factor": 0.5}, None, "factor must be .*found 0.5"),
        ({"scaling.factor": math.nan}, None, "factor must be .*found nan"),
        ({"scaling.factor": 2.0, "scaling.attn_factor": 2.0}, None, "scaling.attn_factor: only 1 is supported"),
        ({"scaling.factor": 2.0, "scaling.yarn_ext_factor": 1.0}, None, "yarn_ext_factor: only 0 is supported"),
        ({**YARN, "scaling.yarn_ext_factor": 0.5}, None, "yarn_ext_factor: only 1 is supported"),
        ({**YARN, "scaling.yarn_attn_factor": 1.0}, None, "yarn_attn_factor: only 1.13863 is supported here, found 1"),
        ({**YARN, "scaling.yarn_log_multiplier": 1.0}, None, "llama.rope.scaling.yarn_log_multiplier: not supported"),
        ({**YARN, "scaling.yarn_beta_fast": 0.5}, None, "beta_fast must be at least beta_slow 1.0, found 0.5"),
        (YARN, [1.0, 1.0, 1.0, 1.0], "rope_freqs.weight: not supported beside llama.rope.scaling.type 'yarn'"),
        ({}, [1.0, 1.0], r"rope_freqs.weight: expected shape \[4\], found \[2\]"),
        ({}, [1.0, 0.0, 1.0, 1.0], "divisors must be finite and above 0, found 0.0"),
        ({}, [1.0, math.inf, 1.0, 1.0], "divisors must be finite and above 0, found inf"),
    ],
)
def test_refused(options: Options, divisors: list[float] | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"x\.gguf: .*{message}"):
        scaling_of(tmp_path / "x.gguf", options, divisors)
