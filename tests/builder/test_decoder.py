from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import get_args

import pytest

from sparsespec.builder.decoder import Decoder, DecoderInputs, attention_params
from sparsespec.builder.fused_weights import INPUT_SCALE, ROW_SCALE, WEIGHT_SCALE, fused_specs
from sparsespec.builder.model_config import Family, ModelConfig
from sparsespec.builder.ops import Fp8Weight
from sparsespec.plugins.pillar_attention.inputs import (
    AttentionInputs,
    LayerInputs,
    PillarAttentionParams,
    StepInputs,
)
from tiny_models import tiny_model_config

# Sizes that no two axes share, so that a mistaken axis shows.
MODEL = replace(
    tiny_model_config(num_layers=3, num_heads=6, num_kv_heads=2, head_dim=8, vocab_size=101),
    hidden_size=40,
    intermediate_size=56,
    rms_norm_eps=3e-5,
)
PARAMS = PillarAttentionParams(
    num_heads=6, num_kv_heads=2, head_dim=8, page_size=4, rms_norm_eps=3e-5, score_planes="rows"
)


@dataclass(frozen=True)
class Handle:
    """A tensor of which only the shape is known, as in a network that is being written down."""

    name: str
    shape: tuple[int | str, ...]


@dataclass
class RecordingOps:
    """Numbers each op's result and writes down what it came from; checks shapes."""

    calls: list[str] = field(default_factory=list)

    def embedding(self, table: Handle, token_ids: Handle) -> Handle:
        (rows,), (_, hidden) = token_ids.shape, table.shape
        return self._made("embedding", (table, token_ids), (rows, hidden))

    def rms_norm(self, x: Handle, weight: Handle, eps: float) -> Handle:
        assert weight.shape == x.shape[-1:]
        assert eps == MODEL.rms_norm_eps
        return self._made("rms_norm", (x, weight), x.shape)

    def linear(self, x: Handle, weight: Handle, bias: Handle | None = None) -> Handle:
        assert x.shape[1] == weight.shape[1]
        assert bias is None or bias.shape == weight.shape[:1]
        operands = (x, weight) if bias is None else (x, weight, bias)
        return self._made("linear", operands, (x.shape[0], weight.shape[0]))

    def linear_fp8(self, x: Handle, weight: Fp8Weight[Handle], bias: Handle | None = None) -> Handle:
        name = weight.weight.name
        assert (weight.weight_scale, weight.input_scale) == (
            Handle(f"{name}.{WEIGHT_SCALE}", ()),
            Handle(f"{name}.{INPUT_SCALE}", ()),
        )
        packed = name.endswith(("qkv", "gate_up"))
        assert weight.row_scale == (Handle(f"{name}.{ROW_SCALE}", weight.weight.shape[:1]) if packed else None)
        assert x.shape[1] == weight.weight.shape[1]
        assert bias is None or bias.shape == weight.weight.shape[:1]
        operands = (x, weight.weight) if bias is None else (x, weight.weight, bias)
        return self._made("linear_fp8", operands, (x.shape[0], weight.weight.shape[0]))

    def add(self, a: Handle, b: Handle) -> Handle:
        assert a.shape == b.shape
        return self._made("add", (a, b), a.shape)

    def silu_mul(self, gate_up: Handle) -> Handle:
        rows, both = gate_up.shape
        assert both == 2 * MODEL.intermediate_size
        return self._made("silu_mul", (gate_up,), (rows, MODEL.intermediate_size))

    def gather_rows(self, x: Handle, rows: Handle) -> Handle:
        return self._made("gather_rows", (x, rows), rows.shape + x.shape[1:])

    def pillar_plan(self, params: PillarAttentionParams, step: StepInputs[Handle]) -> Handle:
        assert params == PARAMS
        assert step == step_inputs()
        return self._made("pillar_plan", (), ("plan",))

    def pillar_attention(self, params: PillarAttentionParams, inputs: AttentionInputs[Handle]) -> Handle:
        assert params == PARAMS
        assert inputs.step == step_inputs()
        assert inputs.qkv.shape == ("rows", (6 + 2 * 2) * 8)
        layer, norm = inputs.layer, inputs.qk_norm
        norms = () if norm is None else (norm.q_norm, norm.k_norm)
        assert all(weight.shape == (8,) for weight in norms)
        operands = (inputs.qkv, *norms, layer.kv_pool, layer.draft_lse, layer.pillars, layer.scores, inputs.plan)
        return self._made("pillar_attention", operands, ("rows", 6 * 8))

    def _made(self, op: str, operands: tuple[Handle, ...], shape: tuple[int | str, ...]) -> Handle:
        result = Handle(f"%{len(self.calls)}", shape)
        self.calls.append(f"{result.name} = {op} {', '.join(operand.name for operand in operands)}".rstrip())
        return result


def step_inputs() -> StepInputs[Handle]:
    return StepInputs(*(Handle(name, ()) for name in StepInputs.__dataclass_fields__))


def layer_inputs(layer: int) -> LayerInputs[Handle]:
    return LayerInputs(*(Handle(f"{layer}.{name}", ()) for name in ("kv_pool", "draft_lse", "pillars", "scores")))


def record(model: ModelConfig) -> tuple[list[str], Handle]:
    weights = {name: Handle(name, spec.shape) for name, spec in fused_specs(model, "float32").items()}
    ops = RecordingOps()
    inputs = DecoderInputs(
        token_ids=Handle("token_ids", ("rows",)),
        logit_rows=Handle("logit_rows", ("logits",)),
        step=step_inputs(),
        layers=tuple(layer_inputs(layer) for layer in range(model.num_layers)),
    )
    return ops.calls, Decoder(ops, model, PARAMS, weights)(inputs)


def operands_of(layer: int) -> str:
    """What attention of that layer takes beside qkv: its own memory, and the plan that all layers share."""
    return f"{layer}.kv_pool, {layer}.draft_lse, {layer}.pillars, {layer}.scores, %0"


def block(layer: int) -> list[str]:
    """Layer `layer`, each op after the plan, the embedding and the ten of every layer before it."""
    x, weights, own = 10 * layer + 1, f"layers.{layer}", operands_of(layer)
    return [
        f"%{x + 1} = rms_norm %{x}, {weights}.input_norm",
        f"%{x + 2} = linear %{x + 1}, {weights}.qkv",
        f"%{x + 3} = pillar_attention %{x + 2}, {own}",
        f"%{x + 4} = linear %{x + 3}, {weights}.o_proj",
        f"%{x + 5} = add %{x}, %{x + 4}",
        f"%{x + 6} = rms_norm %{x + 5}, {weights}.post_attention_norm",
        f"%{x + 7} = linear %{x + 6}, {weights}.gate_up",
        f"%{x + 8} = silu_mul %{x + 7}",
        f"%{x + 9} = linear %{x + 8}, {weights}.down_proj",
        f"%{x + 10} = add %{x + 5}, %{x + 9}",
    ]


def test_network() -> None:
    """Pre-norm blocks with a residual around attention and MLP; only the rows asked for reach the output projection."""
    calls, logits = record(MODEL)
    assert calls == [
        "%0 = pillar_plan",
        "%1 = embedding embedding, token_ids",
        *block(0),
        *block(1),
        *block(2),
        "%32 = gather_rows %31, logit_rows",
        "%33 = rms_norm %32, final_norm",
        "%34 = linear %33, lm_head",
    ]
    assert logits == Handle("%34", ("logits", MODEL.vocab_size))


def test_biases_of_qwen2() -> None:
    calls, _ = record(replace(MODEL, family="qwen2"))
    plain, _ = record(MODEL)
    assert [call for call in calls if call not in plain] == [
        f"%{10 * layer + 3} = linear %{10 * layer + 2}, layers.{layer}.qkv, layers.{layer}.qkv_bias"
        for layer in range(3)
    ]


def test_norms_of_qwen3() -> None:
    calls, _ = record(replace(MODEL, family="qwen3"))
    plain, _ = record(MODEL)
    assert [call for call in calls if call not in plain] == [
        f"%{10 * layer + 4} = pillar_attention %{10 * layer + 3}, layers.{layer}.q_norm, layers.{layer}.k_norm, "
        f"{operands_of(layer)}"
        for layer in range(3)
    ]


@pytest.mark.parametrize("family", get_args(Family))
def test_products_of_fp8(family: Family) -> None:
    """The same network, but for the four products of each layer."""
    plain, _ = record(replace(MODEL, family=family))
    calls, _ = record(replace(MODEL, family=family, quantization="fp8"))
    products = ("qkv", "o_proj", "gate_up", "down_proj")
    expected = [
        call.replace(" linear ", " linear_fp8 ") if any(f".{name}" in call for name in products) else call
        for call in plain
    ]
    assert calls == expected
    assert sum(" linear_fp8 " in call for call in calls) == 4 * 3


def test_attention_of_a_model() -> None:
    assert attention_params(MODEL, page_size=4) == replace(PARAMS, score_planes="mean")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", get_args(Family))
def test_every_weight_is_used_once(tied: bool, family: Family) -> None:
    model = replace(MODEL, family=family, tie_word_embeddings=tied)
    calls, _ = record(model)
    operands = [operand for call in calls[1:] for operand in call.split(maxsplit=3)[3].split(", ")]
    specs = fused_specs(model, "float32")
    used = [operand for operand in operands if operand in specs]
    assert sorted(used) == sorted([*specs, *(["embedding"] if tied else [])])
