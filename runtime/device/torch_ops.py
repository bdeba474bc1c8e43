"""The op vocabulary in torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.ops import Fp8Weight
from sparsespec.builder.rope import rope_frequencies
from sparsespec.plugins.add_rms_norm.reference import add_rms_norm
from sparsespec.plugins.pillar_attention.inputs import AttentionInputs, PillarAttentionParams, StepInputs
from sparsespec.plugins.pillar_attention.reference import rms_norm
from sparsespec.plugins.silu_mul.reference import silu_mul
from sparsespec.runtime.device.attention_ops import AttentionOps
from sparsespec.runtime.device.fp8 import linear_fp8


class TorchOps:
    """builder.ops.Ops for torch tensors, run at once."""

    def __init__(self, attention: AttentionOps) -> None:
        """attention: who does the project's own ops."""
        self._attention = attention

    def embedding(self, table: Tensor, token_ids: Tensor) -> Tensor:
        """See Ops."""
        return functional.embedding(token_ids, table)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Ops."""
        return rms_norm(x, weight, eps)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See Ops."""
        return functional.linear(x, weight, bias)

    def linear_fp8(self, x: Tensor, weight: Fp8Weight[Tensor], bias: Tensor | None = None) -> Tensor:
        """See Ops."""
        return linear_fp8(x, weight, bias)

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See Ops."""
        return add_rms_norm(hidden, delta[None], weight, eps)

    def linear_add_rms_norm(
        self, hidden: Tensor, x: Tensor, weight: Tensor, norm_weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See Ops."""
        return self.add_rms_norm(hidden, self.linear(x, weight), norm_weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See Ops."""
        return silu_mul(gate_up)

    def gather_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        """See Ops."""
        return x[rows]

    def pillar_plan(self, params: PillarAttentionParams, step: StepInputs[Tensor]) -> Tensor:
        """See Ops."""
        return self._attention.plan(params, step)

    def pillar_attention(self, params: PillarAttentionParams, inputs: AttentionInputs[Tensor]) -> Tensor:
        """See Ops."""
        return self._attention.attention(params, inputs)


def rope_table(model: ModelConfig, num_positions: int, dtype: torch.dtype) -> Tensor:
    """[num_positions, head_dim] cosines and sines of RoPE's angles, computed in fp64."""
    frequencies = rope_frequencies(model.head_dim, model.rope_theta, model.rope_scaling)
    amplitude = 1.0 if model.rope_scaling is None else model.rope_scaling.amplitude
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * torch.tensor(frequencies, dtype=torch.float64)
    return (torch.cat((angles.cos(), angles.sin()), dim=1) * amplitude).to(dtype)
