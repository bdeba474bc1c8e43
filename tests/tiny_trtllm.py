"""TensorRT-LLM checkpoints of tiny random models, as its convert_checkpoint.py wrote them up to 1.0."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from tiny_models import save_tiny_tokenizer


def write_tiny_trtllm(
    directory: Path,
    hf_model: PreTrainedModel,
    *,
    tp_size: int = 1,
    pp_size: int = 1,
    embedding_sharding_dim: int | None = None,
    fp8_cache: bool = False,
) -> Path:
    """config.json, a file per rank, and beside them the original's tokenizer. Returns `directory`.

    A tied embedding is stored twice, as the converters do. With `embedding_sharding_dim` the ranks share it.
    With `fp8_cache` layer N has scales of an FP8 KV cache, (N + 1) / 2.
    """
    directory.mkdir(parents=True)
    config = trtllm_config(hf_model, tp_size, pp_size)
    if embedding_sharding_dim is not None:
        config |= {"use_parallel_embedding": True, "embedding_sharding_dim": embedding_sharding_dim}
    if fp8_cache:
        config["quantization"]["kv_cache_quant_algo"] = "FP8"
    (directory / "config.json").write_text(json.dumps(config, indent=4))
    layers = torch.arange(hf_model.config.num_hidden_layers).tensor_split(pp_size)
    for pp_rank in range(pp_size):
        for tp_rank in range(tp_size):
            rank = _Rank(hf_model, tp_rank, tp_size)
            tensors = rank.position_tables()
            for local, layer in enumerate(layers[pp_rank].tolist()):
                tensors |= {f"transformer.layers.{local}.{name}": part for name, part in rank.layer(layer).items()}
                if fp8_cache:
                    name = f"transformer.layers.{local}.attention.kv_cache_scaling_factor"
                    tensors[name] = torch.tensor([(layer + 1) / 2])
            if pp_rank == 0:
                tensors["transformer.vocab_embedding.weight"] = rank.embedding(embedding_sharding_dim)
            if pp_rank == pp_size - 1:
                tensors |= {"transformer.ln_f.weight": rank.norm(), "lm_head.weight": rank.lm_head()}
            tensors = {name: part.clone().contiguous() for name, part in tensors.items()}
            save_file(tensors, directory / f"rank{pp_rank * tp_size + tp_rank}.safetensors")
    save_tiny_tokenizer(directory, hf_model.config.vocab_size)
    return directory


def trtllm_config(hf_model: PreTrainedModel, tp_size: int, pp_size: int) -> dict[str, Any]:
    """Every key that TensorRT-LLM 1.0 writes for this family."""
    config = hf_model.config
    rope = config.to_dict()["rope_parameters"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    common = {
        "architecture": type(hf_model).__name__,
        "dtype": str(hf_model.dtype).removeprefix("torch."),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": "silu",
        "logits_dtype": "float32",
        "norm_epsilon": config.rms_norm_eps,
        "runtime_defaults": None,
        "position_embedding_type": "rope_gpt_neox",
        "num_key_value_heads": config.num_key_value_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "mapping": _mapping(tp_size, pp_size),
        "quantization": _no_quantization(),
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "head_size": config.head_dim,
        "qk_layernorm": False,
        "rotary_embedding_dim": config.head_dim,
        "tie_word_embeddings": config.tie_word_embeddings,
        "mlp_bias": False,
        "attn_bias": config.model_type == "qwen2",
        "rotary_base": rope["rope_theta"],
        "rotary_scaling": None if rope["rope_type"] == "default" else scaling,
        "disable_weight_only_quant_plugin": False,
        "moe": {"num_experts": 0, "shared_expert_intermediate_size": 0, "top_k": 0, "normalization_mode": 0},
    }
    return common | (_llama_keys() if config.model_type == "llama" else _qwen_keys(config.model_type))


def edit_config(directory: Path, **values: object) -> None:
    """Set keys of config.json; None is null."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_rank(directory: Path, rank: int, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of one rank in place."""
    path = directory / f"rank{rank}.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def _llama_keys() -> dict[str, Any]:
    return {
        "residual_mlp": False,
        "remove_duplicated_kv_heads": False,
        "fc_after_embed": False,
        "use_input_layernorm_in_first_layer": True,
        "use_last_layernorm": True,
        "layer_idx_offset": 0,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "output_multiplier_scale": 1.0,
    }


def _qwen_keys(qwen_type: str) -> dict[str, Any]:
    return {
        "qwen_type": qwen_type,
        "seq_length": 8192,
        "use_logn_attn": False,
        "num_labels": 1,
        "moe_intermediate_size": 0,
        "moe_shared_expert_intermediate_size": 0,
    }


def _mapping(tp_size: int, pp_size: int) -> dict[str, Any]:
    return {
        "world_size": tp_size * pp_size,
        "gpus_per_node": 8,
        "cp_size": 1,
        "tp_size": tp_size,
        "pp_size": pp_size,
        "moe_tp_size": tp_size,
        "moe_cluster_size": 1,
        "moe_ep_size": 1,
        "attn_tp_size": tp_size,
        "attn_cp_size": 1,
        "auto_parallel": False,
    }


def _no_quantization() -> dict[str, Any]:
    return {
        "quant_algo": None,
        "kv_cache_quant_algo": None,
        "group_size": 128,
        "smoothquant_val": 0.5,
        "clamp_val": None,
        "use_meta_recipe": False,
        "has_zero_point": False,
        "pre_quant_scale": False,
        "exclude_modules": None,
    }


class _Rank:
    """What one tensor-parallel rank holds of a model."""

    def __init__(self, hf_model: PreTrainedModel, tp_rank: int, tp_size: int) -> None:
        self._config = hf_model.config
        self._tensors: dict[str, Tensor] = hf_model.state_dict()
        self._tp_rank = tp_rank
        self._tp_size = tp_size

    def layer(self, layer: int) -> dict[str, Tensor]:
        prefix = f"model.layers.{layer}."
        own = {name.removeprefix(prefix): part for name, part in self._tensors.items() if name.startswith(prefix)}
        tensors = {
            "input_layernorm.weight": own["input_layernorm.weight"],
            "attention.qkv.weight": self._qkv(own, "weight"),
            "attention.dense.weight": self._chunk(own["self_attn.o_proj.weight"], dim=1),
            "post_layernorm.weight": own["post_attention_layernorm.weight"],
            "mlp.fc.weight": self._chunk(own["mlp.gate_proj.weight"]),
            "mlp.gate.weight": self._chunk(own["mlp.up_proj.weight"]),
            "mlp.proj.weight": self._chunk(own["mlp.down_proj.weight"], dim=1),
        }
        if "self_attn.q_proj.bias" in own:
            tensors["attention.qkv.bias"] = self._qkv(own, "bias")
        if "self_attn.q_norm.weight" in own:
            tensors["attention.q_layernorm.weight"] = own["self_attn.q_norm.weight"]
            tensors["attention.k_layernorm.weight"] = own["self_attn.k_norm.weight"]
        return tensors

    def embedding(self, sharding_dim: int | None) -> Tensor:
        embedding = self._tensors["model.embed_tokens.weight"]
        if sharding_dim is None:
            return embedding
        return self._chunk(self._padded(embedding) if sharding_dim == 0 else embedding, sharding_dim)

    def norm(self) -> Tensor:
        return self._tensors["model.norm.weight"]

    def lm_head(self) -> Tensor:
        return self._chunk(self._padded(self._tensors["lm_head.weight"]))

    def position_tables(self) -> dict[str, Tensor]:
        """Buffers of TensorRT-LLM's modules, saved with the weights."""
        positions, half = self._config.max_position_embeddings // 64, self._config.head_dim // 2
        return {
            "embed_positions": torch.rand(1, positions, 2 * half),
            "rotary_inv_freq": torch.rand(half),
            "embed_positions_for_gpt_attention": torch.rand(1, positions * 2 * half),
        }

    def _qkv(self, own: dict[str, Tensor], suffix: str) -> Tensor:
        queries, keys, values = (own[f"self_attn.{name}_proj.{suffix}"] for name in "qkv")
        parts = (queries, self._repeated(keys), self._repeated(values))
        return torch.cat([self._chunk(part) for part in parts])

    def _repeated(self, rows: Tensor) -> Tensor:
        """KV heads side by side with their copies where there are fewer than ranks."""
        num_kv_heads = self._config.num_key_value_heads
        if num_kv_heads >= self._tp_size:
            return rows
        heads = rows.view(num_kv_heads, self._config.head_dim, *rows.shape[1:])
        return heads.repeat_interleave(self._tp_size // num_kv_heads, dim=0).flatten(0, 1)

    def _padded(self, rows: Tensor) -> Tensor:
        return pad(rows, (0, 0, 0, -len(rows) % self._tp_size))

    def _chunk(self, tensor: Tensor, dim: int = 0) -> Tensor:
        return tensor.chunk(self._tp_size, dim)[self._tp_rank]
