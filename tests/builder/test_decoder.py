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
    _overwritten: list[Handle] = field(default_factory=list)  # by sums: nothing may take them any more

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

    def add_rms_norm(self, hidden: Handle, delta: Handle, weight: Handle, eps: float) -> tuple[Handle, Handle]:
        assert hidden.shape == delta.shape
        assert weight.shape == hidden.shape[-1:]
        assert eps == MODEL.rms_norm_eps
        self._overwritten.append(hidden)
        normed = self._made("add_rms_norm", (hidden, delta, weight), hidden.shape)
        return replace(normed, name=f"{normed.name}.sum"), normed

    def linear_add_rms_norm(
        self, hidden: Handle, x: Handle, weight: Handle, norm_weight: Handle, eps: float
    ) -> tuple[Handle, Handle]:
        return self.add_rms_norm(hidden, self.linear(x, weight), norm_weight, eps)

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
        taken_before = self._overwritten[:-1] if op == "add_rms_norm" else self._overwritten
        assert not [operand for operand in operands if operand in taken_before]
        result = Handle(f"%{len(self.calls)}", shape)
        self.calls.append(f"{result.name} = {op} {', '.join(operand.name for operand in operands)}".rstrip())
        return result


def step_inputs() -> StepInputs[Handle]:
    return StepInputs(*(Handle(name, ()) for name in StepInputs.__dataclass_fields__))


def layer_inputs(layer: int) -> LayerInputs[Handle]:
    return LayerInputs(*(Handle(f"{layer}.{name}", ()) for name in ("kv_pool", "draft_lse", "pillars", "scores")))


LOGIT_ROWS = Handle("logit_rows", ("logits",))


def record(model: ModelConfig, logit_rows: Handle | None = LOGIT_ROWS) -> tuple[list[str], Handle]:
    weights = {name: Handle(name, spec.shape) for name, spec in fused_specs(model, "float32").items()}
    ops = RecordingOps()
    inputs = DecoderInputs(
        token_ids=Handle("token_ids", ("rows",)),
        logit_rows=logit_rows,
        step=step_inputs(),
        layers=tuple(layer_inputs(layer) for layer in range(model.num_layers)),
    )
    return ops.calls, Decoder(ops, model, PARAMS, weights)(inputs)


def operands_of(layer: int) -> str:
    """What attention of that layer takes beside qkv: its own memory, and the plan that all layers share."""
    return f"{layer}.kv_pool, {layer}.draft_lse, {layer}.pillars, {layer}.scores, %0"


def block(layer: int) -> list[str]:
    """Layer `layer` but for its last sum. Before it: plan, embedding, the first norm, and eight calls of each layer."""
    x, weights, own = 8 * layer + 2, f"layers.{layer}", operands_of(layer)
    return [
        f"%{x + 1} = linear %{x}, {weights}.qkv",
        f"%{x + 2} = pillar_attention %{x + 1}, {own}",
        f"%{x + 3} = linear %{x + 2}, {weights}.o_proj",
        f"%{x + 4} = add_rms_norm {residual(layer)}, %{x + 3}, {weights}.post_attention_norm",
        f"%{x + 5} = linear %{x + 4}, {weights}.gate_up",
        f"%{x + 6} = silu_mul %{x + 5}",
        f"%{x + 7} = linear %{x + 6}, {weights}.down_proj",
    ]


def residual(layer: int) -> str:
    """What attention's output is added to."""
    return "%1" if layer == 0 else f"%{8 * layer + 2}.sum"


BLOCKS = [
    "%0 = pillar_plan",
    "%1 = embedding embedding, token_ids",
    "%2 = rms_norm %1, layers.0.input_norm",
    *block(0),
    "%10 = add_rms_norm %6.sum, %9, layers.1.input_norm",
    *block(1),
    "%18 = add_rms_norm %14.sum, %17, layers.2.input_norm",
    *block(2),
]


def test_network() -> None:
    """Pre-norm blocks with a residual around attention and MLP; only the rows asked for reach the last product."""
    calls, logits = record(MODEL)
    assert calls == [
        *BLOCKS[:-1],
        "%25 = gather_rows %22.sum, logit_rows",
        "%26 = gather_rows %24, logit_rows",
        "%27 = linear %26, layers.2.down_proj",
        "%28 = add_rms_norm %25, %27, final_norm",
        "%29 = linear %28, lm_head",
    ]
    assert logits == Handle("%29", ("logits", MODEL.vocab_size))


def test_network_with_logits_of_all_rows() -> None:
    """As in steps of drafts alone: nothing is gathered."""
    calls, logits = record(MODEL, logit_rows=None)
    assert calls == [*BLOCKS, "%26 = add_rms_norm %22.sum, %25, final_norm", "%27 = linear %26, lm_head"]
    assert logits == Handle("%27", ("rows", MODEL.vocab_size))


def test_biases_of_qwen2() -> None:
    calls, _ = record(replace(MODEL, family="qwen2"))
    plain, _ = record(MODEL)
    assert [call for call in calls if call not in plain] == [
        f"%{8 * layer + 3} = linear %{8 * layer + 2}, layers.{layer}.qkv, layers.{layer}.qkv_bias" for layer in range(3)
    ]


def test_norms_of_qwen3() -> None:
    calls, _ = record(replace(MODEL, family="qwen3"))
    plain, _ = record(MODEL)
    assert [call for call in calls if call not in plain] == [
        f"%{8 * layer + 4} = pillar_attention %{8 * layer + 3}, layers.{layer}.q_norm, layers.{layer}.k_norm, "
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
