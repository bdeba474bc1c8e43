from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from sparsespec.builder.decoder import Decoder, DecoderInputs
from sparsespec.builder.fused_weights import fused_shapes
from sparsespec.builder.model_config import ModelConfig
from sparsespec.plugins.pillar_attention.inputs import LayerInputs, PillarAttentionParams, StepInputs
from tiny_models import tiny_model_config

# Sizes that no two axes share, so that a mistaken axis shows.
MODEL = replace(
    tiny_model_config(num_layers=3, num_heads=6, num_kv_heads=2, head_dim=8, vocab_size=101),
    hidden_size=40,
    intermediate_size=56,
    rms_norm_eps=3e-5,
)
PAGE_SIZE = 4


@dataclass(frozen=True)
class Handle:
    """A tensor of which only the shape is known, as in a network that is being written down."""

    name: str
    shape: tuple[int | str, ...]


@dataclass
class RecordingOps:
    """Writes down each op with the weight or layer it used, and checks shapes."""

    calls: list[str] = field(default_factory=list)

    def embedding(self, table: Handle, token_ids: Handle) -> Handle:
        (rows,), (_, hidden) = token_ids.shape, table.shape
        return self._made("embedding", table, rows, hidden)

    def rms_norm(self, x: Handle, weight: Handle, eps: float) -> Handle:
        assert weight.shape == x.shape[-1:]
        assert eps == MODEL.rms_norm_eps
        return self._made("rms_norm", weight, *x.shape)

    def linear(self, x: Handle, weight: Handle) -> Handle:
        assert x.shape[1] == weight.shape[1]
        return self._made("linear", weight, x.shape[0], weight.shape[0])

    def add(self, a: Handle, b: Handle) -> Handle:
        assert a.shape == b.shape
        return self._made(f"add {a.name} +", b, *a.shape)

    def silu_mul(self, gate_up: Handle) -> Handle:
        rows, both = gate_up.shape
        assert both == 2 * MODEL.intermediate_size
        return self._made("silu_mul", gate_up, rows, MODEL.intermediate_size)

    def gather_rows(self, x: Handle, rows: Handle) -> Handle:
        return self._made("gather_rows", rows, *rows.shape, *x.shape[1:])

    def pillar_attention(
        self, params: PillarAttentionParams, qkv: Handle, layer: LayerInputs[Handle], step: StepInputs[Handle]
    ) -> Handle:
        assert params == PillarAttentionParams(6, 2, 8, PAGE_SIZE)
        assert step == step_inputs()
        assert qkv.shape == ("rows", (6 + 2 * 2) * 8)
        assert [layer.kv_pool.shape, layer.pillars.shape, layer.scores.shape] == [(), (), ()]
        assert [name.split(".")[1] for name in (layer.pillars.name, layer.scores.name)] == ["pillars", "scores"]
        return self._made("pillar_attention", layer.kv_pool, qkv.shape[0], 6 * 8)

    def _made(self, op: str, operand: Handle, *shape: int | str) -> Handle:
        self.calls.append(f"{op} {operand.name}")
        return Handle(op, shape)


def step_inputs() -> StepInputs[Handle]:
    return StepInputs(*(Handle(name, ()) for name in StepInputs.__dataclass_fields__))


def layer_inputs(layer: int) -> LayerInputs[Handle]:
    return LayerInputs(*(Handle(f"{layer}.{name}", ()) for name in LayerInputs.__dataclass_fields__))


def record(model: ModelConfig) -> tuple[list[str], Handle]:
    weights = {name: Handle(name, shape) for name, shape in fused_shapes(model).items()}
    ops = RecordingOps()
    inputs = DecoderInputs(
        token_ids=Handle("token_ids", ("rows",)),
        logit_rows=Handle("logit_rows", ("logits",)),
        step=step_inputs(),
        layers=tuple(layer_inputs(layer) for layer in range(model.num_layers)),
    )
    return ops.calls, Decoder(ops, model, PAGE_SIZE, weights)(inputs)


def test_network() -> None:
    """Pre-norm blocks with a residual around attention and MLP; only the rows asked for reach the output projection."""
    calls, logits = record(MODEL)
    before = ["embedding", "add", "add"]
    blocks = [
        [
            f"rms_norm layers.{layer}.input_norm",
            f"linear layers.{layer}.qkv",
            f"pillar_attention {layer}.kv_pool",
            f"linear layers.{layer}.o_proj",
            f"add {'embedding' if layer == 0 else 'add add +'} + linear",
            f"rms_norm layers.{layer}.post_attention_norm",
            f"linear layers.{layer}.gate_up",
            "silu_mul linear",
            f"linear layers.{layer}.down_proj",
            "add add + + linear",
        ]
        for layer in range(len(before))
    ]
    ends = ["gather_rows logit_rows", "rms_norm final_norm", "linear lm_head"]
    assert calls == ["embedding embedding", *(call for block in blocks for call in block), *ends]
    assert logits.shape == ("logits", MODEL.vocab_size)


@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_is_used_once(tied: bool) -> None:
    model = replace(MODEL, tie_word_embeddings=tied)
    calls, _ = record(model)
    used = [operand for operand in (call.split()[-1] for call in calls) if operand in fused_shapes(model)]
    assert sorted(used) == sorted([*fused_shapes(model), *(["embedding"] if tied else [])])
