"""An FP8 KV cache in TensorRT's network: interpreted in numpy, and taken by TensorRT for RTX's real builder."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import get_args

import pytest

from build_on_rtx import build_on_rtx
from engine_steps import MODEL, engine_spec, random_step, torch_outputs
from network_checks import errors, interpreted, recorded, tolerance
from recorded_ops import Plugin
from sparsespec.builder.build_config import BuildConfig, DType
from sparsespec.builder.model_config import Family
from sparsespec.builder.trt.config import TensorRTConfig
from sparsespec.builder.trt.engine_io import EngineKind, engine_io
from sparsespec.builder.trt.network import EngineSpec
from tiny_models import tiny_model_config

every_kind = pytest.mark.parametrize("kind", get_args(EngineKind))
every_family = pytest.mark.parametrize("family", get_args(Family))


def spec_of(kind: EngineKind, dtype: DType, family: Family) -> EngineSpec:
    spec = engine_spec(kind, dtype, family)
    return replace(spec, build=replace(spec.build, kv_cache_dtype="fp8"))


@every_family
@every_kind
def test_outputs_are_the_torch_lowerings(family: Family, kind: EngineKind) -> None:
    step = random_step(spec_of(kind, "float32", family), seed=0)
    found = errors(interpreted(recorded(step.spec), step), torch_outputs(step))
    print(f"relative error, of all outputs {max(found.values()):.1e}")
    assert max(found.values()) <= tolerance(step.spec), found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@every_family
def test_outputs_in_16_bits(family: Family, dtype: DType) -> None:
    """A key that is rounded differently may be the next number of FP8."""
    step = random_step(spec_of("verify", dtype, family), seed=0)
    found = errors(interpreted(recorded(step.spec), step), torch_outputs(step))
    print(f"relative error, of logits {found['logits']:.1e}, of all outputs {max(found.values()):.1e}")
    assert max(found.values()) < 0.3, found


@every_family
@every_kind
def test_scales_are_weights_that_attention_takes(family: Family, kind: EngineKind) -> None:
    recording = recorded(spec_of(kind, "bfloat16", family))
    for layer in range(MODEL.num_layers):
        (attention,) = recording.consumers(recording.number(f"layers.{layer}.kv_scale"))
        assert isinstance(attention.op, Plugin)
        assert dict(attention.op.fields)["kv_cache_dtype"] == "fp8"
        place = 17 if kind == "draft" else 19
        assert attention.inputs[place] == recording.number(f"layers.{layer}.kv_scale")
        assert attention.inputs[1] == recording.number(f"layers.{layer}.kv_pool")


def test_types_of_the_pool() -> None:
    spec = spec_of("verify", "bfloat16", "llama")
    io = engine_io(spec.model, spec.build, TensorRTConfig(), "verify")
    types = {tensor.name: tensor.dtype for tensor in (*io.inputs, *io.outputs)}
    assert types["layers.0.kv_pool"] == types["layers.0.kv_pool.updated"] == "float8_e4m3fn"
    assert types["layers.0.kv_scale"] == "float32"
    assert types["logits"] == "bfloat16"


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="needs the package tensorrt-rtx-cu13-bindings")
@every_kind
def test_real_builder_builds(kind: EngineKind) -> None:
    model = tiny_model_config(family="qwen3", hidden_size=128, num_heads=4, num_kv_heads=2, head_dim=64)
    build = BuildConfig(dtype="bfloat16", max_batch_size=4, max_seq_len=512, kv_cache_dtype="fp8")
    built = build_on_rtx(model, build, kind)
    print(f"{kind}.engine: {built.num_bytes} bytes in {built.seconds:.1f} s")
    found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in (*built.inputs, *built.outputs)}
    assert found["layers.1.kv_pool"] == ("FP8", (-1, 2, 2, 16, 64))
    assert found["layers.1.kv_pool.updated"] == ("FP8", (-1, 2, 2, 16, 64))
    assert found["layers.1.kv_scale"] == ("FLOAT", (2, 2))
