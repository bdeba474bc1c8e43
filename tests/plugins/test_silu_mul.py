"""SiluMul's reference against its definition, number by number."""

from __future__ import annotations

import pytest
import torch

from sparsespec.plugins.silu_mul.reference import silu_mul

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_the_gate_comes_first(num_rows: int, dtype: torch.dtype, fresh_seed: int) -> None:
    generator = torch.Generator().manual_seed(fresh_seed)
    gate_up = (4 * torch.randn(num_rows, 48, generator=generator, dtype=torch.float64)).to(dtype)
    found = silu_mul(gate_up)
    gate, up = gate_up[:, :24].double(), gate_up[:, 24:].double()
    assert found.dtype == dtype
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), gate / (1 + (-gate).exp()) * up, rtol=tolerance, atol=tolerance)


def test_rounds_before_the_product() -> None:
    """silu(1) is 0.73046875 in bfloat16, and nine times that 6.5625; rounded once, 6.59375."""
    gate_up = torch.tensor([[1.0, 9.0]], dtype=torch.bfloat16)
    assert silu_mul(gate_up).item() == 6.5625
