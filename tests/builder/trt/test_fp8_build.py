"""linear_fp8 in TensorRT's layers: interpreted in numpy, and built by TensorRT for RTX's real builder."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import get_args

import pytest

from build_on_rtx import build_on_rtx
from engine_steps import MODEL, engine_spec, random_step, torch_outputs
from network_checks import errors, interpreted, recorded, tolerance
from recorded_ops import Cast, Dequantize, Elementwise, MatrixMultiply, Quantize
from recorded_types import DataType, ElementWiseOperation
from sparsespec.builder.build_config import BuildConfig, DType
from sparsespec.builder.fused_weights import fused_specs
from sparsespec.builder.model_config import Family
from sparsespec.builder.trt.engine_io import EngineKind
from tiny_models import tiny_model_config

FP8_MODEL = replace(MODEL, quantization="fp8")
PRODUCTS = ("qkv", "o_proj", "gate_up", "down_proj")
PROD = ElementWiseOperation.PROD
every_kind = pytest.mark.parametrize("kind", get_args(EngineKind))
every_family = pytest.mark.parametrize("family", get_args(Family))


@every_family
@every_kind
def test_outputs_are_the_torch_lowerings(family: Family, kind: EngineKind) -> None:
    """In float32, where only the order of sums differs: that may move an input that is next to a border of FP8."""
    step = random_step(engine_spec(kind, "float32", family, model=FP8_MODEL), seed=0)
    found = errors(interpreted(recorded(step.spec), step), torch_outputs(step))
    first = found["layers.0.kv_pool.updated"]
    print(f"relative error, of the first product {first:.1e}, of all outputs {max(found.values()):.1e}")
    assert first <= tolerance(step.spec)
    assert max(found.values()) < 1e-3, found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@every_family
def test_outputs_in_16_bits(family: Family, dtype: DType) -> None:
    """Operands are rounded to 16 bits, unlike those of torch: that moves some later inputs to the next FP8 number."""
    step = random_step(engine_spec("verify", dtype, family, model=FP8_MODEL), seed=0)
    found = errors(interpreted(recorded(step.spec), step), torch_outputs(step))
    first = found["layers.0.kv_pool.updated"]
    print(f"relative error, of the first product {first:.1e}, of logits {found['logits']:.1e}")
    assert first <= tolerance(step.spec)
    assert max(found.values()) < 0.3, found


@every_family
@every_kind
def test_products_have_operands_of_fp8(family: Family, kind: EngineKind) -> None:
    """The pattern that TensorRT looks for: quantised, dequantised, multiplied. Scales are inputs of the engine.

    Rows are scaled in float32, after the product.
    """
    recording = recorded(engine_spec(kind, "bfloat16", family, model=FP8_MODEL))
    for layer in range(MODEL.num_layers):
        for name in PRODUCTS:
            weight = f"layers.{layer}.{name}"
            (dequantize,) = recording.consumers(recording.number(weight))
            assert isinstance(dequantize.op, Dequantize)
            (product,) = recording.consumers(dequantize.outputs[0])
            assert isinstance(product.op, MatrixMultiply)
            assert product.name == weight
            both = recording.consumers(recording.number(f"{weight}.input_scale"))
            assert [type(call.op) for call in both] == [Quantize, Dequantize]
            assert both[1].inputs[0] == both[0].outputs[0]
            assert product.inputs == (both[1].outputs[0], dequantize.outputs[0])
            assert recording.consumers(recording.number(f"{weight}.weight_scale")) == [dequantize]
            if name in ("qkv", "gate_up"):
                (row,) = recording.consumers(recording.number(f"{weight}.row_scale"))
                (scaled,) = recording.consumers(row.outputs[0])
                (cast,) = recording.consumers(product.outputs[0])
                assert cast.op == Cast(DataType.FLOAT)
                assert (scaled.op, scaled.inputs) == (Elementwise(PROD), (cast.outputs[0], row.outputs[0]))
                assert recording.consumers(scaled.outputs[0])[0].op == Cast(DataType.BF16)


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="needs the package tensorrt-rtx-cu13-bindings")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@every_kind
@every_family
def test_real_builder_builds(family: Family, kind: EngineKind, dtype: DType) -> None:
    """Weights and scales are inputs, of their own types."""
    model = tiny_model_config(
        family=family, hidden_size=128, num_heads=4, num_kv_heads=2, head_dim=64, quantization="fp8"
    )
    built = build_on_rtx(model, BuildConfig(dtype=dtype, max_batch_size=4, max_seq_len=512), kind)
    print(f"{kind}.engine: {built.num_bytes} bytes in {built.seconds:.1f} s")
    found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in built.inputs}
    own = "HALF" if dtype == "float16" else "BF16"
    names = {"float8_e4m3fn": "FP8", "float32": "FLOAT", dtype: own}
    for name, spec in fused_specs(model, dtype).items():
        assert found[name] == (names[spec.dtype], spec.shape)
    assert found["layers.1.down_proj"] == ("FP8", (128, 256))
    assert found["layers.1.down_proj.input_scale"] == ("FLOAT", ())
    assert found["layers.1.gate_up.row_scale"] == ("FLOAT", (512,))
