"""The executor's weight layout: every tensor in weights.safetensors, and what it is made of."""

from __future__ import annotations

from sparsespec.builder.model_config import ModelConfig


def fused_sources(model: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Name -> the checkpoint's tensors that it stacks by rows, with the shape of each.

    `lm_head` is absent when it is tied to `embedding`.
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


def fused_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each weight."""
    return {name: _stacked(list(parts.values())) for name, parts in fused_sources(model).items()}


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
