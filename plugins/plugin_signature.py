"""Fields and inputs of this project's plugins, in the plugins' own order: for TensorRT networks and the plugin host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TypeVar

from sparsespec.plugins.accept_drafts.inputs import AcceptDraftsInputs
from sparsespec.plugins.pillar_attention.inputs import AttentionInputs, PillarAttentionParams, StepInputs
from sparsespec.plugins.pillar_select.inputs import SelectInputs
from sparsespec.plugins.sample_rows.inputs import SampleRowsInputs
from sparsespec.plugins.step_rows.inputs import StepRowsInputs

TensorT = TypeVar("TensorT")
Fields = Mapping[str, int | float | str]


def plan_fields(params: PillarAttentionParams) -> Fields:
    """Of PillarPlan."""
    return {"num_heads": params.num_heads, "num_kv_heads": params.num_kv_heads, "head_dim": params.head_dim}


def attention_fields(params: PillarAttentionParams, has_qk_norm: bool, has_kv_scale: bool) -> Fields:
    """Of PillarAttention. has_kv_scale: whether the KV pool is FP8."""
    return {
        **plan_fields(params),
        "page_size": params.page_size,
        "kv_cache_dtype": "fp8" if has_kv_scale else "auto",
        "rms_norm_eps": params.rms_norm_eps,
        "qk_norm": int(has_qk_norm),
        "score_planes": params.score_planes,
        "score_normalizer": params.score_normalizer,
    }


def plan_inputs(step: StepInputs[TensorT]) -> list[TensorT]:
    """Of PillarPlan."""
    return [*_lengths(step), step.num_lookups]


def attention_inputs(params: PillarAttentionParams, inputs: AttentionInputs[TensorT]) -> list[TensorT]:
    """Of PillarAttention."""
    layer, step, norm = inputs.layer, inputs.step, inputs.qk_norm
    return [
        inputs.qkv,
        layer.kv_pool,
        layer.draft_lse,
        layer.pillars,
        *_lengths(step),
        step.lookups,
        step.num_lookups,
        step.page_table,
        step.rope_table,
        inputs.plan,
        *_score_inputs(params, inputs),
        *(() if layer.kv_scale is None else (layer.kv_scale,)),
        *(() if norm is None else (norm.q_norm, norm.k_norm)),
    ]


def add_rms_norm_fields(hidden_size: int, rms_norm_eps: float) -> Fields:
    """Of AddRmsNorm."""
    return {"hidden_size": hidden_size, "rms_norm_eps": rms_norm_eps}


def silu_mul_fields(intermediate_size: int) -> Fields:
    """Of SiluMul, whose only input is gate_up."""
    return {"intermediate_size": intermediate_size}


def add_rms_norm_inputs(hidden: TensorT, delta: TensorT, weight: TensorT) -> list[TensorT]:
    """Of AddRmsNorm."""
    return [hidden, delta, weight]


def select_inputs(inputs: SelectInputs[TensorT]) -> list[TensorT]:
    """Of PillarSelect."""
    return [
        inputs.scores,
        inputs.scored_slot,
        inputs.moving_shift,
        inputs.recent_start,
        inputs.num_staying,
        inputs.num_moving,
        inputs.pillars,
    ]


def step_op_inputs(
    inputs: StepRowsInputs[TensorT] | SampleRowsInputs[TensorT] | AcceptDraftsInputs[TensorT],
) -> list[TensorT]:
    """Of StepRows, SampleRows or AcceptDrafts, whose fields are in their plugin's order; no draft_probs if None."""
    tensors = [getattr(inputs, field.name) for field in fields(inputs)]
    return [tensor for tensor in tensors if tensor is not None]


def _score_inputs(params: PillarAttentionParams, inputs: AttentionInputs[TensorT]) -> tuple[TensorT, ...]:
    if params.score_planes == "none":
        return ()
    index, scores = inputs.step.score_index, inputs.layer.scores
    assert index is not None, "score_index is there wherever rows are scored"
    assert scores is not None, "scores are there wherever rows are scored"
    return index, scores


def _lengths(step: StepInputs[TensorT]) -> list[TensorT]:
    return [
        step.row_start,
        step.phase,
        step.draft_index,
        step.score_rows,
        step.kv_len,
        step.recent_start,
        step.num_staying,
        step.num_moving,
    ]
