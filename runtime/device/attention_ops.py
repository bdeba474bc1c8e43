"""The project's own ops for torch tensors: one seam for the references, the oracle and the plugins."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sparsespec.plugins.pillar_attention.inputs import AttentionInputs, PillarAttentionParams, StepInputs
from sparsespec.plugins.pillar_attention.oracle import oracle_attention
from sparsespec.plugins.pillar_attention.reference import pillar_attention
from sparsespec.plugins.pillar_select.inputs import SelectInputs
from sparsespec.plugins.pillar_select.reference import pillar_select


class AttentionOps(Protocol):
    """PillarPlan, PillarAttention and PillarSelect."""

    def plan(self, params: PillarAttentionParams, step: StepInputs[Tensor]) -> Tensor:
        """What `attention` needs to know of a step, once for all layers: int32."""

    def attention(self, params: PillarAttentionParams, inputs: AttentionInputs[Tensor]) -> Tensor:
        """[num_rows, num_heads * head_dim]; see plugins.pillar_attention.reference."""

    def select(self, inputs: SelectInputs[Tensor]) -> None:
        """See plugins.pillar_select.reference."""


class ReferenceAttention:
    """AttentionOps in torch, for every device, type and shape.

    They read lengths on the host, so on a GPU they wait for the device.
    """

    def plan(self, params: PillarAttentionParams, step: StepInputs[Tensor]) -> Tensor:
        """Empty: every row is worked on as a whole."""
        return torch.empty(0, dtype=torch.int32, device=step.phase.device)

    def attention(self, params: PillarAttentionParams, inputs: AttentionInputs[Tensor]) -> Tensor:
        """See AttentionOps."""
        return pillar_attention(params, inputs)

    def select(self, inputs: SelectInputs[Tensor]) -> None:
        """See AttentionOps."""
        pillar_select(inputs)


class OracleAttention(ReferenceAttention):
    """The same with draft rows that choose their own pillars."""

    def attention(self, params: PillarAttentionParams, inputs: AttentionInputs[Tensor]) -> Tensor:
        """See AttentionOps."""
        return oracle_attention(params, inputs)
