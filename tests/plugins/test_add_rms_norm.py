"""AddRmsNorm's reference against its definition, number by number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsespec.plugins.add_rms_norm.reference import add_rms_norm

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [0, 1, 5])
@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_the_norm_is_of_the_rounded_sum(num_parts: int, num_rows: int, dtype: torch.dtype, fresh_seed: int) -> None:
    hidden = normal(num_rows, 24, dtype=dtype, seed=fresh_seed)
    delta = normal(num_parts, num_rows, 24, dtype=dtype, seed=fresh_seed + 1)
    weight = normal(24, dtype=dtype, seed=fresh_seed + 2)
    before = hidden.clone()
    total, normed = add_rms_norm(hidden, delta, weight, 1e-3)
    assert torch.equal(hidden, before)
    assert total.dtype == normed.dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)  # in which parts are added, one after another
    added = sum((part.to(wide) for part in delta), start=hidden.to(wide))
    assert torch.equal(total, added.to(dtype))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(total.double(), hidden.double() + delta.double().sum(dim=0), rtol=eps, atol=8 * eps)
    exact = total.double()
    root = (exact.square().sum(dim=-1, keepdim=True) / 24 + 1e-3).sqrt()
    tolerance = 3 * torch.finfo(dtype).eps
    torch.testing.assert_close(normed.double(), exact / root * weight.double(), rtol=tolerance, atol=tolerance)


def test_rounds_before_the_weight() -> None:
    """A third is 0.333984375 in bfloat16, and five times that 1.671875; five thirds would be 1.6640625."""
    hidden = torch.ones(1, 8, dtype=torch.bfloat16)
    weight = torch.full((8,), 5.0, dtype=torch.bfloat16)
    _, normed = add_rms_norm(hidden, torch.zeros_like(hidden)[None], weight, 8.0)
    assert normed.tolist() == [[1.671875] * 8]
