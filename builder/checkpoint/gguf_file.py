"""A GGUF file of the llama architecture, under Hugging Face's tensor names and row order."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch

from sparsespec.builder.build_config import DType
from sparsespec.builder.checkpoint.base import check_shape
from sparsespec.builder.checkpoint.gguf_reader import GgufMetadata
from sparsespec.builder.checkpoint.gguf_tokenizer import build_tokenizer
from sparsespec.builder.errors import CheckpointError, InputError
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.tokenizer_files import save_tokenizer

_GLOBAL_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_TENSORS = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


class GgufCheckpoint:
    """Dequantises tensors on demand to float32. Raises CheckpointError for what is damaged or not supported."""

    def __init__(self, path: Path) -> None:
        self._file = GgufMetadata(path)
        _refuse_unsupported(self._file)
        self.model: ModelConfig = _model_config(self._file)
        self.dtype: DType = "float32"
        self._tokenizer = build_tokenizer(self._file)

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """See Checkpoint."""
        path, stored = self._file.path, _stored_name(name)
        found = self._file.tensors.get(stored)
        if found is None:
            raise CheckpointError(f"{path}: {stored}: expected a tensor of shape {list(shape)}, found none")
        check_shape(path, stored, shape, found.shape.tolist()[::-1])
        try:
            values = torch.from_numpy(np.array(gguf.quants.dequantize(found.data, found.tensor_type), np.float32))
        except NotImplementedError:
            kind = found.tensor_type.name
            raise CheckpointError(f"{path}: {stored}: expected a type gguf can dequantise, found {kind}") from None
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            return _unpermuted(values, self.model.head_dim)
        return values

    def save_tokenizer(self, directory: Path) -> None:
        """See Checkpoint."""
        save_tokenizer(self._tokenizer, directory)


def _stored_name(name: str) -> str:
    if name in _GLOBAL_TENSORS:
        return _GLOBAL_TENSORS[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{_LAYER_TENSORS[part]}"


def _unpermuted(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """llama.cpp rotates rows 2i and 2i+1 of a head together, Hugging Face rows i and i + head_dim / 2."""
    heads = rows.shape[0] // head_dim
    return rows.view(heads, head_dim // 2, 2, -1).transpose(1, 2).reshape(rows.shape)


def _refuse_unsupported(file: GgufMetadata) -> None:
    architecture = file.get("general.architecture", "")
    if architecture != "llama":
        raise CheckpointError(f"{file.path}: general.architecture: only 'llama' is supported, found {architecture!r}")
    scaling = file.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise CheckpointError(f"{file.path}: llama.rope.scaling.type: only 'none' is supported, found {scaling!r}")
    experts = file.get("llama.expert_count", 0)
    if experts:
        raise CheckpointError(f"{file.path}: llama.expert_count: only 0 is supported, found {experts}")
    for name in file.tensors:
        # Biases, rope_freqs (scaled rotary embeddings) and extra norms all change the result.
        if name not in _GLOBAL_TENSORS.values() and not _is_layer_tensor(name):
            raise CheckpointError(f"{file.path}: {name}: not a tensor of a plain llama model; it is not supported")


def _is_layer_tensor(name: str) -> bool:
    block, _, rest = name.partition(".")
    layer, _, part = rest.partition(".")
    return block == "blk" and layer.isdecimal() and part in _LAYER_TENSORS.values()


def _model_config(file: GgufMetadata) -> ModelConfig:
    hidden_size = file.require_int("llama.embedding_length")
    num_heads = file.require_int("llama.attention.head_count")
    head_dim = file.get("llama.attention.key_length", hidden_size // max(num_heads, 1))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if file.get(key, head_dim) != head_dim:
            raise CheckpointError(f"{file.path}: {key}: expected head_dim {head_dim}, found {file.get(key, head_dim)}")
    try:
        return ModelConfig(
            family="llama",
            vocab_size=file.get("llama.vocab_size", len(file.strings("tokenizer.ggml.tokens"))),
            hidden_size=hidden_size,
            intermediate_size=file.require_int("llama.feed_forward_length"),
            num_layers=file.require_int("llama.block_count"),
            num_heads=num_heads,
            num_kv_heads=file.get("llama.attention.head_count_kv", num_heads),
            head_dim=head_dim,
            rms_norm_eps=_decimal(file.get("llama.attention.layer_norm_rms_epsilon", 1e-6)),
            rope_theta=_decimal(file.get("llama.rope.freq_base", 10000.0)),
            max_position_embeddings=file.require_int("llama.context_length"),
            tie_word_embeddings="output.weight" not in file.tensors,
            eos_token_ids=_eos_token_ids(file),
        )
    except CheckpointError:
        raise
    except InputError as error:
        raise CheckpointError(f"{file.path}: {error}") from error


def _decimal(value: float) -> float:
    """Metadata is float32; its shortest decimal is what the converter was given (1e-05, not 9.9999997e-06)."""
    return float(str(np.float32(value)))


def _eos_token_ids(file: GgufMetadata) -> tuple[int, ...]:
    tokens: list[int] = []
    for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"):
        token = file.get(key, -1)
        if token >= 0 and token not in tokens:
            tokens.append(token)
    return tuple(tokens)
