"""The op vocabulary in torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sparsespec.plugins.pillar_attention.inputs import LayerInputs, PillarAttentionParams, StepInputs
from sparsespec.plugins.pillar_attention.reference import pillar_attention


class TorchOps:
    """builder.ops.Ops for torch tensors, run at once."""

    def embedding(self, table: Tensor, token_ids: Tensor) -> Tensor:
        """See Ops."""
        return functional.embedding(token_ids, table)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Ops."""
        exact = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        return (exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype) * weight

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """See Ops."""
        return functional.linear(x, weight)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """See Ops."""
        return a + b

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See Ops."""
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def gather_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        """See Ops."""
        return x[rows]

    def pillar_attention(
        self, params: PillarAttentionParams, qkv: Tensor, layer: LayerInputs[Tensor], step: StepInputs[Tensor]
    ) -> Tensor:
        """See Ops."""
        return pillar_attention(params, qkv, layer, step)


def rope_table(head_dim: int, theta: float, num_positions: int, dtype: torch.dtype) -> Tensor:
    """[num_positions, head_dim] cosines and sines of RoPE's angles (Su et al. 2021), computed in fp64."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1).to(dtype)
