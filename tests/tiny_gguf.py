"""GGUF files of tiny random models, as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import gguf
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tiny_models import CHAT_TEMPLATE, SPECIAL_TOKENS, tiny_tokenizer

STORED_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's numbers, or its blocks as bytes."""

    data: npt.NDArray[Any]
    kind: GGMLQuantizationType


def write_tiny_gguf(
    path: Path, hf_model: PreTrainedModel, kinds: tuple[GGMLQuantizationType, ...] = (GGMLQuantizationType.F32,)
) -> Path:
    """The same model; its matrices take the types in turn, norms and biases stay float32."""
    tensors = {}
    for name, (values, kind) in matrix_kinds(hf_model, kinds).items():
        rows = permuted(values, _heads(hf_model, name)).numpy()
        tensors[stored_name(name)] = StoredTensor(gguf.quants.quantize(rows, kind), kind)
    return write_gguf(path, hf_model, tensors)


def write_gguf(path: Path, hf_model: PreTrainedModel, tensors: Mapping[str, StoredTensor]) -> Path:
    """A file with the metadata of that model and these tensors."""
    writer = gguf.GGUFWriter(path, hf_model.config.model_type)
    _add_shapes(writer, hf_model.config)
    _add_rope(writer, hf_model.config)
    _add_tokenizer(writer, hf_model.config.vocab_size)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.data, raw_dtype=tensor.kind)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    """Write all that was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def round_weights(hf_model: PreTrainedModel, kinds: tuple[GGMLQuantizationType, ...]) -> None:
    """Give the model the values that `write_tiny_gguf` stores of it."""
    rounded = {
        name: torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(values.numpy(), kind), kind))
        for name, (values, kind) in matrix_kinds(hf_model, kinds).items()
    }
    hf_model.load_state_dict(rounded, strict=False)


def matrix_kinds(
    hf_model: PreTrainedModel, kinds: tuple[GGMLQuantizationType, ...]
) -> dict[str, tuple[torch.Tensor, GGMLQuantizationType]]:
    """Every tensor under Hugging Face's name, with the type that it is stored in; a tied one is not stored twice."""
    turn = cycle(kinds)
    return {
        name: (values, next(turn) if values.dim() > 1 else GGMLQuantizationType.F32)
        for name, values in hf_model.state_dict().items()
        if not (name == "lm_head.weight" and hf_model.config.tie_word_embeddings)
    }


def stored_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.bias` is `blk.3.attn_q.bias`."""
    *path, part, kind = name.split(".")
    return ".".join([*(["blk", path[2]] if "layers" in path else []), STORED_NAMES[part], kind])


def permuted(rows: torch.Tensor, heads: int | None) -> torch.Tensor:
    """llama.cpp's row order: it rotates neighbouring rows, Hugging Face row i and row i + head_dim / 2."""
    if heads is None:
        return rows
    return rows.view(heads, 2, rows.shape[0] // heads // 2, -1).transpose(1, 2).reshape(rows.shape)


def _heads(hf_model: PreTrainedModel, name: str) -> int | None:
    """The heads in which rows are permuted, if they are: in the llama architecture only."""
    if hf_model.config.model_type != "llama":
        return None
    heads = {"q_proj": hf_model.config.num_attention_heads, "k_proj": hf_model.config.num_key_value_heads}
    return heads.get(name.split(".")[-2])


def _add_shapes(writer: gguf.GGUFWriter, config: Any) -> None:
    head_dim = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if config.model_type == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_dim)


def _add_rope(writer: gguf.GGUFWriter, config: Any) -> None:
    values = config.to_dict()
    # transformers 5 keeps all in `rope_parameters`, 4 the base beside the other constants.
    rope = values.get("rope_parameters") or {"rope_theta": values["rope_theta"], **(values.get("rope_scaling") or {})}
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind == "llama3":
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        writer.add_tensor("rope_freqs.weight", (rope["rope_theta"] ** -exponents / scaled).numpy())
    elif kind != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def _add_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    vocabulary = tiny_tokenizer(vocab_size).get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL_TOKENS else normal for token in tokens])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
