"""The decoder, written once against the op vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from sparsespec.builder.fused_weights import INPUT_SCALE, KV_SCALE, ROW_SCALE, WEIGHT_SCALE
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.ops import Fp8Weight, Ops
from sparsespec.plugins.pillar_attention.inputs import (
    AttentionInputs,
    LayerInputs,
    PillarAttentionParams,
    QkNorm,
    StepInputs,
)

TensorT = TypeVar("TensorT")


@dataclass(frozen=True)
class DecoderInputs(Generic[TensorT]):
    """One step's inputs."""

    token_ids: TensorT  # [num_rows] token of each row
    logit_rows: TensorT | None  # [num_logits] the rows whose logits are needed; None for all, in order
    step: StepInputs[TensorT]
    layers: tuple[LayerInputs[TensorT], ...]  # without kv_scale, which is a weight


@dataclass(frozen=True)
class Decoder(Generic[TensorT]):
    """A pre-norm transformer decoder with packed projections; weights as named in fused_weights."""

    ops: Ops[TensorT]
    model: ModelConfig
    attention: PillarAttentionParams
    weights: Mapping[str, TensorT]

    def __call__(self, inputs: DecoderInputs[TensorT]) -> TensorT:
        """Logits [num_logits, vocab_size] of inputs.logit_rows, or of all rows."""
        assert len(inputs.layers) == self.model.num_layers
        plan = self.ops.pillar_plan(self.attention, inputs.step)
        hidden = self.ops.embedding(self.weights["embedding"], inputs.token_ids)
        normed = self.ops.rms_norm(hidden, self._weight(0, "input_norm"), self.model.rms_norm_eps)
        for layer in range(self.model.num_layers):
            attended = self._attention(layer, normed, inputs, plan)
            norm_weight = self._weight(layer, "post_attention_norm")
            hidden, normed = self._add_linear(layer, "o_proj", hidden, attended, norm_weight)
            gated = self.ops.silu_mul(self._linear(layer, "gate_up", normed))
            if layer == self.model.num_layers - 1:
                hidden, gated = self._logit_rows(inputs, hidden), self._logit_rows(inputs, gated)
            hidden, normed = self._add_linear(layer, "down_proj", hidden, gated, self._norm_after(layer))
        return self.ops.linear(normed, self.weights["embedding" if self.model.tie_word_embeddings else "lm_head"])

    def _add_linear(
        self, layer: int, name: str, hidden: TensorT, x: TensorT, norm_weight: TensorT
    ) -> tuple[TensorT, TensorT]:
        """hidden and the product of x, and the norm of that."""
        eps = self.model.rms_norm_eps
        if self.model.quantization is None:
            return self.ops.linear_add_rms_norm(hidden, x, self._weight(layer, name), norm_weight, eps)
        return self.ops.add_rms_norm(hidden, self._linear(layer, name, x), norm_weight, eps)

    def _norm_after(self, layer: int) -> TensorT:
        """The weight of the norm that a layer's output goes through."""
        is_last = layer == self.model.num_layers - 1
        return self.weights["final_norm"] if is_last else self._weight(layer + 1, "input_norm")

    def _logit_rows(self, inputs: DecoderInputs[TensorT], x: TensorT) -> TensorT:
        return x if inputs.logit_rows is None else self.ops.gather_rows(x, inputs.logit_rows)

    def _attention(self, layer: int, normed: TensorT, inputs: DecoderInputs[TensorT], plan: TensorT) -> TensorT:
        bias = self._weight(layer, "qkv_bias") if self.model.qkv_bias else None
        qkv = self._linear(layer, "qkv", normed, bias)
        qk_norm = QkNorm(self._weight(layer, "q_norm"), self._weight(layer, "k_norm")) if self.model.qk_norm else None
        own = self._with_kv_scale(layer, inputs.layers[layer])
        return self.ops.pillar_attention(self.attention, AttentionInputs(qkv, qk_norm, own, inputs.step, plan))

    def _with_kv_scale(self, layer: int, own: LayerInputs[TensorT]) -> LayerInputs[TensorT]:
        scale = self.weights.get(f"layers.{layer}.{KV_SCALE}")  # None where the KV cache has the model's type
        return own if scale is None else replace(own, kv_scale=scale)

    def _linear(self, layer: int, name: str, x: TensorT, bias: TensorT | None = None) -> TensorT:
        weight = self._weight(layer, name)
        if self.model.quantization is None:
            return self.ops.linear(x, weight, bias)
        weight_scale, input_scale = (self._weight(layer, f"{name}.{scale}") for scale in (WEIGHT_SCALE, INPUT_SCALE))
        row_scale = self.weights.get(f"layers.{layer}.{name}.{ROW_SCALE}")  # None where the product has one part
        return self.ops.linear_fp8(x, Fp8Weight(weight, weight_scale, input_scale, row_scale), bias)

    def _weight(self, layer: int, name: str) -> TensorT:
        return self.weights[f"layers.{layer}.{name}"]


def attention_params(model: ModelConfig, page_size: int) -> PillarAttentionParams:
    """The model's own part of them; how rows are scored is the runtime's."""
    return PillarAttentionParams(
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        page_size=page_size,
        rms_norm_eps=model.rms_norm_eps,
    )
