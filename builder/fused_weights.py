"""The executor's weight layout: names and shapes of every tensor in weights.safetensors."""

from __future__ import annotations

from sparsespec.builder.model_config import ModelConfig


def fused_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each weight, [out, in] for projections; `lm_head` is absent when it is tied to `embedding`."""
    attention_size = model.num_heads * model.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embedding": (model.vocab_size, model.hidden_size)}
    for layer in range(model.num_layers):
        shapes |= {
            f"layers.{layer}.input_norm": (model.hidden_size,),
            f"layers.{layer}.qkv": (model.qkv_size, model.hidden_size),
            f"layers.{layer}.o_proj": (model.hidden_size, attention_size),
            f"layers.{layer}.post_attention_norm": (model.hidden_size,),
            f"layers.{layer}.gate_up": (2 * model.intermediate_size, model.hidden_size),
            f"layers.{layer}.down_proj": (model.hidden_size, model.intermediate_size),
        }
    shapes["final_norm"] = (model.hidden_size,)
    if not model.tie_word_embeddings:
        shapes["lm_head"] = (model.vocab_size, model.hidden_size)
    return shapes
