"""The executor's weight layout: every tensor in weights.safetensors, and what it is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sparsespec.builder.build_config import ELEMENT_SIZE, DType, KvCacheDType
from sparsespec.builder.model_config import ModelConfig

WeightType = Literal["float64", "float32", "float16", "bfloat16", "float8_e4m3fn"]

WEIGHT_SCALE, INPUT_SCALE, ROW_SCALE, KV_SCALE = "weight_scale", "input_scale", "row_scale", "kv_scale"
_QUANTIZED = ("qkv", "o_proj", "gate_up", "down_proj")


@dataclass(frozen=True)
class WeightSpec:
    """What a weight is."""

    shape: tuple[int, ...]
    dtype: WeightType

    @property
    def num_elements(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """How much memory."""
        return self.num_elements * (1 if self.dtype == "float8_e4m3fn" else ELEMENT_SIZE[self.dtype])


def fused_sources(model: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Name -> the checkpoint's tensors that it stacks by rows, with the shape of each.

    `lm_head` is absent when it is tied to `embedding`. Scales are not stacked: they are not listed.
    """
    vocabulary = (model.vocab_size, model.hidden_size)
    sources: dict[str, dict[str, tuple[int, ...]]] = {"embedding": {"model.embed_tokens.weight": vocabulary}}
    for layer in range(model.num_layers):
        for name, parts in _layer_sources(model).items():
            sources[f"layers.{layer}.{name}"] = {f"model.layers.{layer}.{part}": shape for part, shape in parts.items()}
    sources["final_norm"] = {"model.norm.weight": (model.hidden_size,)}
    if not model.tie_word_embeddings:
        sources["lm_head"] = {"lm_head.weight": vocabulary}
    return sources


def fused_specs(model: ModelConfig, dtype: DType, kv_cache_dtype: KvCacheDType = "auto") -> dict[str, WeightSpec]:
    """Every weight by name. dtype is concrete.

    A quantised product `X` is float8_e4m3fn, followed by `X.weight_scale` and `X.input_scale`: float32, of shape ().
    Where it has several parts `X.row_scale` follows, float32 of shape [out]: what weight_scale is multiplied by to be
    the scale of the row's own part. An FP8 KV cache has `layers.N.kv_scale`: see LayerInputs.
    """
    assert dtype != "auto", "weights have a concrete type"
    specs = {}
    for name, parts in fused_sources(model).items():
        shape = _stacked(list(parts.values()))
        if is_quantized(model, name):
            specs[name] = WeightSpec(shape, "float8_e4m3fn")
            specs |= {f"{name}.{scale}": WeightSpec((), "float32") for scale in (WEIGHT_SCALE, INPUT_SCALE)}
            if len(parts) > 1:
                specs[f"{name}.{ROW_SCALE}"] = WeightSpec(shape[:1], "float32")
        else:
            specs[name] = WeightSpec(shape, dtype)
    if kv_cache_dtype == "fp8":
        scales = WeightSpec((2, model.num_kv_heads), "float32")
        specs |= {f"layers.{layer}.{KV_SCALE}": scales for layer in range(model.num_layers)}
    return specs


def is_quantized(model: ModelConfig, name: str) -> bool:
    """Whether a weight of `fused_sources` is kept as float8_e4m3fn."""
    return model.quantization == "fp8" and name.rpartition(".")[2] in _QUANTIZED


def is_scale(name: str) -> bool:
    """Whether that weight is made of scales, of a product or of the KV cache."""
    return name.rpartition(".")[2] in (WEIGHT_SCALE, INPUT_SCALE, ROW_SCALE, KV_SCALE)


def scale_source(weight: str, scale: str) -> str:
    """The checkpoint's tensor beside `weight` that holds that scale of it."""
    return f"{weight.removesuffix('.weight')}.{scale}"


def _layer_sources(model: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    hidden, queries = model.hidden_size, model.num_heads * model.head_dim
    gate = (model.intermediate_size, hidden)
    return {
        "input_norm": {"input_layernorm.weight": (hidden,)},
        **_qkv_sources(model),
        "o_proj": {"self_attn.o_proj.weight": (hidden, queries)},
        "post_attention_norm": {"post_attention_layernorm.weight": (hidden,)},
        "gate_up": {"mlp.gate_proj.weight": gate, "mlp.up_proj.weight": gate},
        "down_proj": {"mlp.down_proj.weight": (hidden, model.intermediate_size)},
    }


def _qkv_sources(model: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    sources: dict[str, dict[str, tuple[int, ...]]] = {
        "qkv": {f"self_attn.{name}.weight": (count, model.hidden_size) for name, count in rows.items()}
    }
    if model.qkv_bias:
        sources["qkv_bias"] = {f"self_attn.{name}.bias": (count,) for name, count in rows.items()}
    if model.qk_norm:
        sources |= {name: {f"self_attn.{name}.weight": (model.head_dim,)} for name in ("q_norm", "k_norm")}
    return sources


def _stacked(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])
