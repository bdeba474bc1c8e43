from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding

from sparsespec.builder.rope import LinearScaling, RopeScaling, YarnScaling
from sparsespec.runtime.device.attention_ops import ReferenceAttention
from sparsespec.runtime.device.torch_ops import TorchOps, rope_table
from tiny_models import tiny_hf_config, tiny_model_config

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
OPS = TorchOps(ReferenceAttention())


def normal(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rms_norm_is_transformers(dtype: torch.dtype, device: str) -> None:
    x, weight = normal(5, 48, dtype=dtype, device=device), normal(48, dtype=dtype, device=device)
    norm = LlamaRMSNorm(48, eps=1e-3).to(device, dtype)
    norm.weight.data = weight
    torch.testing.assert_close(OPS.rms_norm(x, weight, 1e-3), norm(x), rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_rms_norm_in_fp64(device: str) -> None:
    x, weight = normal(5, 48, device=device), normal(48, device=device)
    torch.testing.assert_close(
        OPS.rms_norm(x, weight, 1e-3), functional.rms_norm(x, (48,), weight, 1e-3), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("device", DEVICES)
def test_rms_norm_squares_beyond_fp16(device: str) -> None:
    """300 squared overflows fp16, whose largest number is 65504."""
    x, weight = torch.full((1, 8), 300.0, dtype=torch.float16, device=device), torch.ones(8, dtype=torch.float16)
    assert OPS.rms_norm(x, weight.to(device), 1e-5).tolist() == [[1.0] * 8]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mlp_is_transformers(dtype: torch.dtype, device: str) -> None:
    """Fails when gate and up change places. Rounding: one product of the packed matrix or two."""
    config = LlamaConfig(hidden_size=32, intermediate_size=24)
    mlp = LlamaMLP(config).to(device, dtype)  # type: ignore[no-untyped-call]
    x, gate_up = normal(5, 32, dtype=dtype, device=device), normal(48, 32, dtype=dtype, device=device) / 4
    down = normal(32, 24, dtype=dtype, device=device)
    mlp.gate_proj.weight.data, mlp.up_proj.weight.data = gate_up.chunk(2)
    mlp.down_proj.weight.data = down
    found = OPS.linear(OPS.silu_mul(OPS.linear(x, gate_up)), down)
    assert found.dtype == dtype
    tolerance = 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, mlp(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_by_number(device: str) -> None:
    table, rows = normal(7, 3, device=device), torch.tensor([6, 0, 6], device=device)
    expected = [table[6].tolist(), table[0].tolist(), table[6].tolist()]
    assert OPS.embedding(table, rows).tolist() == expected
    assert OPS.gather_rows(table, rows).tolist() == expected
    assert OPS.gather_rows(table, rows[:0]).shape == (0, 3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_adds_its_bias(dtype: torch.dtype, device: str) -> None:
    x, weight = normal(5, 32, dtype=dtype, device=device), normal(24, 32, dtype=dtype, device=device)
    bias = normal(24, dtype=dtype, device=device)
    found, expected = OPS.linear(x, weight, bias), x.double() @ weight.double().T + bias.double()
    assert found.dtype == dtype
    tolerance = 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("head_dim", "theta"), [(2, 10000.0), (64, 100000.0), (96, 500000.0)])
@pytest.mark.parametrize("scaling", [None, LinearScaling("linear", 2.0), YarnScaling("yarn", 4.0, 8.0, 1.0, 64, 1.3)])
def test_rope_table_is_transformers(head_dim: int, theta: float, scaling: RopeScaling | None) -> None:
    """Theirs repeats the angles for both halves. It multiplies in fp32: an angle of 300 is off by up to 300 * 2^-23."""
    model = tiny_model_config(head_dim=head_dim, rope_scaling=scaling)
    model = replace(model, rope_theta=theta, max_position_embeddings=256)
    cos, sin = LlamaRotaryEmbedding(tiny_hf_config(model))(torch.zeros(1), torch.arange(300)[None])
    expected = torch.cat((cos[0, :, : head_dim // 2], sin[0, :, : head_dim // 2]), dim=1)
    torch.testing.assert_close(rope_table(model, 300, torch.float32), expected, rtol=0, atol=1e-4)


def test_rope_table_far_out() -> None:
    """Angles of order 10^5 keep their digits: they are computed in fp64 whatever the table's type."""
    model = tiny_model_config(head_dim=64)
    exact = rope_table(model, 131072, torch.float64)
    torch.testing.assert_close(exact[:, 0], torch.arange(131072.0, dtype=torch.float64).cos(), rtol=0, atol=1e-12)
    assert torch.equal(rope_table(model, 131072, torch.float32), exact.float())
