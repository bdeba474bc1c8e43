"""Where a TensorRT-LLM checkpoint keeps the tensors that Hugging Face names, and how its ranks share them."""

from __future__ import annotations

from dataclasses import dataclass

from sparsespec.builder.checkpoint.base import EMBEDDING, LM_HEAD
from sparsespec.builder.checkpoint.trtllm_config import TrtllmConfig

_GLOBAL_NAMES = {
    EMBEDDING: "transformer.vocab_embedding.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    LM_HEAD: "lm_head.weight",
}
# TensorRT-LLM's fc is the half that goes through the activation.
_LAYER_NAMES = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attn.q_norm.weight": "attention.q_layernorm.weight",
    "self_attn.k_norm.weight": "attention.k_layernorm.weight",
    "self_attn.o_proj.weight": "attention.dense.weight",
    "self_attn.kv_scale": "attention.kv_cache_scaling_factor",  # of keys and values alike: not one of Hugging Face's
    "post_attention_layernorm.weight": "post_layernorm.weight",
    "mlp.gate_proj.weight": "mlp.fc.weight",
    "mlp.up_proj.weight": "mlp.gate.weight",
    "mlp.down_proj.weight": "mlp.proj.weight",
}
# Along which the ranks share a tensor; the others are whole on every rank.
_SHARED_DIMS = {
    LM_HEAD: 0,
    "self_attn.o_proj.weight": 1,
    "mlp.gate_proj.weight": 0,
    "mlp.up_proj.weight": 0,
    "mlp.down_proj.weight": 1,
}


@dataclass(frozen=True)
class StoredTensor:
    """How the ranks of one stage hold a tensor."""

    name: str
    stage: int
    shape: tuple[int, ...]  # on every rank
    rows: slice  # those that belong to the tensor
    copies: int  # so many neighbouring ranks hold the same
    dim: int  # along which the others are joined


@dataclass(frozen=True)
class _Place:
    stage: int
    prefix: str  # of the names in the rank files
    part: str  # what Hugging Face's name ends with


def find_tensor(config: TrtllmConfig, name: str, shape: tuple[int, ...]) -> StoredTensor:
    """Where to look for what has this name and shape in a Hugging Face directory."""
    place, tp_size = _place(config, name), config.layout.tp_size
    if place.part.startswith(("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.")):
        return _find_in_qkv(config, place, shape)
    stored_name = _GLOBAL_NAMES.get(name) or place.prefix + _LAYER_NAMES[place.part]
    dim = config.embedding_dim if name == EMBEDDING else _SHARED_DIMS.get(place.part)
    if dim is None:
        return StoredTensor(stored_name, place.stage, shape, slice(None), copies=tp_size, dim=0)
    # Rounded up: a vocabulary is padded to a multiple of the ranks.
    stored_shape = (*shape[:dim], -(-shape[dim] // tp_size), *shape[dim + 1 :])
    return StoredTensor(stored_name, place.stage, stored_shape, slice(None), copies=1, dim=dim)


def _find_in_qkv(config: TrtllmConfig, place: _Place, shape: tuple[int, ...]) -> StoredTensor:
    """Every rank stacks the rows of its heads: queries, keys, values. With more ranks than KV heads, some share one."""
    model, tp_size = config.model, config.layout.tp_size
    copies = max(tp_size // model.num_kv_heads, 1)
    queries = model.num_heads // tp_size * model.head_dim
    keys = model.num_kv_heads * copies // tp_size * model.head_dim
    rows = {
        "q_proj": slice(0, queries),
        "k_proj": slice(queries, queries + keys),
        "v_proj": slice(queries + keys, queries + 2 * keys),
    }
    _, projection, suffix = place.part.split(".")
    return StoredTensor(
        name=f"{place.prefix}attention.qkv.{suffix}",
        stage=place.stage,
        shape=(queries + 2 * keys, *shape[1:]),
        rows=rows[projection],
        copies=1 if projection == "q_proj" else copies,
        dim=0,
    )


def _place(config: TrtllmConfig, name: str) -> _Place:
    if name in _GLOBAL_NAMES:
        return _Place(0 if name == EMBEDDING else config.layout.pp_size - 1, "", name)
    _, _, layer, part = name.split(".", 3)
    stage, local = config.layout.locate(int(layer))
    return _Place(stage, f"transformer.layers.{local}.", part)
