"""The executor's weight layout: every tensor in weights.safetensors, and what it is made of."""

from __future__ import annotations

from sparsespec.builder.model_config import ModelConfig


def fused_sources(model: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Name -> the checkpoint's modules whose weights it stacks by rows, with the shape of each, [out, in].

    `lm_head` is absent when it is tied to `embedding`.
    """
    vocabulary = (model.vocab_size, model.hidden_size)
    sources: dict[str, dict[str, tuple[int, ...]]] = {"embedding": {"model.embed_tokens": vocabulary}}
    for layer in range(model.num_layers):
        for name, parts in _layer_sources(model).items():
            sources[f"layers.{layer}.{name}"] = {f"model.layers.{layer}.{part}": shape for part, shape in parts.items()}
    sources["final_norm"] = {"model.norm": (model.hidden_size,)}
    if not model.tie_word_embeddings:
        sources["lm_head"] = {"lm_head": vocabulary}
    return sources


def fused_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each weight."""
    return {name: _stacked(list(parts.values())) for name, parts in fused_sources(model).items()}


def _layer_sources(model: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    hidden, queries, keys = model.hidden_size, model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    gate = (model.intermediate_size, hidden)
    return {
        "input_norm": {"input_layernorm": (hidden,)},
        "qkv": {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
        },
        "o_proj": {"self_attn.o_proj": (hidden, queries)},
        "post_attention_norm": {"post_attention_layernorm": (hidden,)},
        "gate_up": {"mlp.gate_proj": gate, "mlp.up_proj": gate},
        "down_proj": {"mlp.down_proj": (hidden, model.intermediate_size)},
    }


def _stacked(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])
