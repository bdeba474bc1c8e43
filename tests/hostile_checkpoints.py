"""Small intact checkpoints to damage, and the reading of all that a checkpoint has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from hostile_campaign import result_or_error
from sparsespec.builder.checkpoint import open_checkpoint
from sparsespec.builder.errors import InputError
from sparsespec.builder.fuse import fused_weights
from sparsespec.builder.fused_weights import fused_specs, is_scale
from sparsespec.builder.model_config import Family, ModelConfig, Quantization
from sparsespec.builder.rope import rope_frequencies
from tiny_models import tiny_model_config


def small_model(
    family: Family = "llama", vocab_size: int = 16, quantization: Quantization | None = None
) -> ModelConfig:
    """Its files are a few kilobytes."""
    return tiny_model_config(
        family=family,
        num_layers=1,
        hidden_size=8,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        vocab_size=vocab_size,
        quantization=quantization,
    )


def read_all(source: Path) -> ModelConfig | InputError:
    """Open a checkpoint and read all its weights, and scales of its KV cache.

    What comes out fits together, or an error says why not.
    """
    return result_or_error(lambda: _read_all(source), str(source))


def _read_all(source: Path) -> ModelConfig:
    checkpoint = open_checkpoint(str(source))
    weights = dict(fused_weights(checkpoint, torch.float32, "fp8"))
    specs = fused_specs(checkpoint.model, "float32", "fp8")
    expected = {name: (spec.shape, getattr(torch, spec.dtype)) for name, spec in specs.items()}
    if {name: (tuple(weight.shape), weight.dtype) for name, weight in weights.items()} != expected:
        raise AssertionError("weights that do not fit the model")  # `python -O` would leave `assert` out here
    check_scales(weights)
    check_model(checkpoint.model)
    return checkpoint.model


def check_scales(weights: Mapping[str, torch.Tensor]) -> None:
    """Those that a product or a KV cache can have, where there are any."""
    for name, scale in weights.items():
        if is_scale(name) and not (scale.isfinite() & (scale > 0)).all():
            raise AssertionError(f"{name}: scales that nothing has: {scale}")


def check_model(model: ModelConfig) -> None:
    """Numbers that decoding can work with, whatever the file said."""
    if model.head_dim < 10_000:
        frequencies = rope_frequencies(model.head_dim, model.rope_theta, model.rope_scaling)
        if not all(math.isfinite(frequency) for frequency in frequencies):
            raise AssertionError(f"frequencies that are not finite: {frequencies}")
