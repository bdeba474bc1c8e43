"""From Hugging Face's Llama tensors to the executor's fused layout."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sparsespec.builder.checkpoint import Checkpoint


def fused_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) as `fused_shapes(checkpoint.model)` lists them, contiguous, on the CPU, in `dtype`.

    Raises CheckpointError for a missing, damaged or misshapen tensor.
    """
    model = checkpoint.model
    vocabulary = (model.vocab_size, model.hidden_size)
    norm = (model.hidden_size,)
    yield "embedding", _packed(checkpoint, dtype, {"model.embed_tokens": vocabulary})
    for layer in range(model.num_layers):
        for name, parts in _layer_parts(checkpoint).items():
            sources = {f"model.layers.{layer}.{part}": shape for part, shape in parts.items()}
            yield f"layers.{layer}.{name}", _packed(checkpoint, dtype, sources)
    yield "final_norm", _packed(checkpoint, dtype, {"model.norm": norm})
    if not model.tie_word_embeddings:
        yield "lm_head", _packed(checkpoint, dtype, {"lm_head": vocabulary})


def _layer_parts(checkpoint: Checkpoint) -> dict[str, dict[str, tuple[int, ...]]]:
    """Fused name -> the checkpoint's tensors whose rows it stacks, with their shapes."""
    model = checkpoint.model
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


def _packed(checkpoint: Checkpoint, dtype: torch.dtype, sources: dict[str, tuple[int, ...]]) -> torch.Tensor:
    return torch.cat([checkpoint.tensor(f"{name}.weight", shape).to(dtype) for name, shape in sources.items()])
