"""linear_fp8 in torch: products of FP8 operands where the GPU has them, and of what they stand for elsewhere."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from sparsespec.builder.ops import Fp8Weight
from sparsespec.plugins.pillar_attention.reference import to_fp8

# Of both sides of a weight: what cuBLAS takes.
_MULTIPLE = 16
_LEAST_CAPABILITY = (8, 9)


def linear_fp8(x: Tensor, weight: Fp8Weight[Tensor], bias: Tensor | None) -> Tensor:
    """See builder.ops.Ops."""
    rounded = to_fp8(x, weight.input_scale)
    product = _gpu_product if has_gpu_product(x, weight.weight) else exact_product
    result = product(rounded, weight, x.dtype)
    return result if bias is None else result + bias


def exact_product(rounded: Tensor, weight: Fp8Weight[Tensor], dtype: torch.dtype) -> Tensor:
    """The product in fp32, or fp64 where that is dtype; FP8 numbers and their products are exact in both."""
    wide = torch.promote_types(dtype, torch.float32)
    product = functional.linear(rounded.to(wide), weight.weight.to(wide))
    scaled = product * (weight.input_scale * weight.weight_scale)
    return (scaled if weight.row_scale is None else scaled * weight.row_scale).to(dtype)


def _gpu_product(rounded: Tensor, weight: Fp8Weight[Tensor], dtype: torch.dtype) -> Tensor:
    # The transpose of a contiguous weight is what cuBLAS wants: column-major.
    product = torch._scaled_mm(
        rounded, weight.weight.t(), scale_a=weight.input_scale, scale_b=weight.weight_scale, out_dtype=dtype
    )
    if weight.row_scale is None:
        return product
    # One kernel, which computes in float32 as row_scale is, and rounds once more. To do: some GPUs take scales of rows
    # in _scaled_mm, scale_a [rows, 1] and scale_b [1, out], for results in bfloat16.
    return product.mul_(weight.row_scale)


def has_gpu_product(x: Tensor, weight: Tensor) -> bool:
    """Whether the GPU multiplies such operands as they are."""
    if not x.is_cuda or x.dtype == torch.float64 or any(size % _MULTIPLE for size in weight.shape):
        return False
    return _capability(x.device) >= _LEAST_CAPABILITY


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
