"""An engine's network, recorded and run in numpy, against the torch lowering on the same step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from engine_steps import EngineStep
from interpreter_values import Array, Value, value_of
from network_interpreter import interpret
from recorded_network import Network, Recording, RecordingTensorRT
from recorded_types import require
from sparsespec.builder.trt.attention_layers import PluginLayers
from sparsespec.builder.trt.network import EngineSpec, write_network


def recorded(spec: EngineSpec) -> Recording:
    """The network of that engine."""
    trt, network = RecordingTensorRT(), Network()
    kept = write_network(trt, network, PluginLayers(trt, spec.config.aliased_io), spec)
    recording = network.recording()
    del kept  # the constants, up to here
    return recording


def interpreted(recording: Recording, step: EngineStep) -> dict[str, Value]:
    """The outputs of a step, whose own tensors stay as they are."""
    return interpret(recording, {name: value_of(tensor) for name, tensor in step.tensors.items()})


def tolerance(spec: EngineSpec) -> float:
    """Largest error over the largest number.

    In float32 a few dozen units in the last place, for sums of other orders. In 16 bits both round the same sums at the
    same places, and rarely one of them differently. But torch adds a bias before it rounds a product, and TensorRT
    rounds the product as well.
    """
    eps = torch.finfo(getattr(torch, spec.build.dtype)).eps
    if spec.build.dtype == "float32":
        return 40 * eps
    return (12 if spec.model.qkv_bias else 4) * eps


def errors(found: Mapping[str, Value], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Of each output that is expected: the largest difference over the largest number; inf for another shape or NaN."""
    require(sorted(found) == sorted(expected), f"outputs {sorted(found)}")
    return {name: _error(found[name].array, value_of(tensor).array) for name, tensor in expected.items()}


def _error(found: Array, expected: Array) -> float:
    if found.shape != expected.shape or not np.array_equal(np.isnan(found), np.isnan(expected)):
        return float("inf")
    known = ~np.isnan(expected)
    difference = np.abs(found[known].astype(np.float64) - expected[known])
    return float(difference.max(initial=0) / np.abs(expected[known]).max(initial=1e-30))
