"""Products of FP8 operands on a GPU that has them, against the exact ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from executor_driver import Driver, relative_error
from sparsespec.builder.build_config import DType
from sparsespec.builder.engine_dir import TORCH_DTYPES
from sparsespec.builder.ops import Fp8Weight
from sparsespec.plugins.pillar_attention.reference import to_fp8
from sparsespec.runtime.device.fp8 import exact_product, has_gpu_product, linear_fp8
from tiny_llm import random_prompts
from tiny_models import fp8_of, random_weights, row_scales, tiny_model_config

pytestmark = pytest.mark.gpu

MOST_ROWS = 513
# [out, in] of qkv, o_proj, gate_up and down_proj.
SIZES = {
    "SmolLM2-135M": ((960, 576), (576, 576), (3072, 576), (576, 1536)),
    "Qwen3-8B": ((6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288)),
}
EVERY_SIZE = [size for sizes in SIZES.values() for size in sizes]
PACKED_SIZES = [size for qkv, _, gate_up, _ in SIZES.values() for size in (qkv, gate_up)]


def fp8_weight(size: tuple[int, int]) -> Fp8Weight[Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    weight, scale = fp8_of(0.02 * torch.randn(size, generator=generator, device="cuda"))
    return Fp8Weight(weight, scale, torch.tensor(1 / 64, device="cuda"), None)


def inputs(rows: int, size: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(1)
    return (2 * torch.randn(rows, size, generator=generator, device="cuda")).to(dtype)


def needs_fp8() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU with FP8: compute capability 8.9")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", EVERY_SIZE, ids=str)
def test_any_number_of_rows(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Every step has another one. The GPU adds products up with fewer bits than fp32 has."""
    needs_fp8()
    weight, x = fp8_weight(size), inputs(MOST_ROWS, size[1], dtype)
    bias = inputs(1, size[0], dtype)[0]
    assert has_gpu_product(x, weight.weight)
    expected = exact_product(to_fp8(x, weight.input_scale), weight, torch.float64)
    tolerance = {torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float32: 1e-3}[dtype]
    largest = torch.zeros((), dtype=torch.float64, device="cuda")
    for rows in range(1, MOST_ROWS + 1):
        found = linear_fp8(x[:rows], weight, None)
        assert (found.shape, found.dtype) == ((rows, size[0]), dtype)
        difference = (found.double() - expected[:rows]).norm(dim=1) / expected[:rows].norm(dim=1)
        largest = torch.maximum(largest, difference.max())
    print(f"relative error {float(largest):.1e}")
    assert float(largest) < tolerance
    assert torch.equal(linear_fp8(x, weight, bias), linear_fp8(x, weight, None) + bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", PACKED_SIZES, ids=str)
def test_scales_of_rows(size: tuple[int, int], dtype: torch.dtype) -> None:
    """In fp32, after the product was rounded."""
    needs_fp8()
    plain, row_scale, bias = fp8_weight(size), row_scales(size[0]).cuda(), inputs(1, size[0], dtype)[0]
    weight = replace(plain, row_scale=row_scale)
    tolerance = {torch.bfloat16: 6e-3, torch.float16: 1.5e-3, torch.float32: 1e-3}[dtype]
    for rows in (0, 1, 7, MOST_ROWS):
        x = inputs(rows, size[1], dtype)
        found = linear_fp8(x, weight, None)
        assert torch.equal(found, (linear_fp8(x, plain, None).float() * row_scale).to(dtype))
        assert torch.equal(linear_fp8(x, weight, bias), found + bias)
        if rows:
            expected = exact_product(to_fp8(x, weight.input_scale), weight, torch.float64)
            assert relative_error(found, expected.cpu()) < tolerance


@pytest.mark.parametrize("scaled_rows", [False, True])
@pytest.mark.parametrize("size", [(24, 64), (64, 40)])
def test_sizes_that_the_gpu_does_not_take(size: tuple[int, int], scaled_rows: bool) -> None:
    weight = replace(fp8_weight(size), row_scale=row_scales(size[0]).cuda() if scaled_rows else None)
    x = inputs(5, size[1], torch.bfloat16)
    assert not has_gpu_product(x, weight.weight)
    expected = exact_product(to_fp8(x, weight.input_scale), weight, torch.bfloat16)
    assert torch.equal(linear_fp8(x, weight, None), expected)


def test_no_rows() -> None:
    weight = fp8_weight((64, 32))
    assert linear_fp8(inputs(0, 32, torch.bfloat16), weight, None).shape == (0, 64)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_logits_are_the_cpus(dtype: DType) -> None:
    """What differs moves a few inputs to the next number of FP8; nothing does in fp64."""
    model = tiny_model_config(num_layers=3, quantization="fp8")
    weights = random_weights(model, TORCH_DTYPES[dtype], seed=3)
    prompts = [list(prompt) for prompt in random_prompts((61, 35))]
    on_cpu, on_gpu = (
        torch.cat(list(Driver(model, placed, dtype, prompts).prefill({0: 61, 1: 35}).values())).double().cpu()
        for placed in (weights, {name: weight.cuda() for name, weight in weights.items()})
    )
    assert relative_error(on_gpu, on_cpu) < (1e-9 if dtype == "float64" else 0.2)
