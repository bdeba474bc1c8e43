"""What the metadata of a GGUF file says about the model."""

from __future__ import annotations

from typing import get_args

from sparsespec.builder.checkpoint.gguf_reader import GgufMetadata
from sparsespec.builder.checkpoint.gguf_rope import read_rope_scaling
from sparsespec.builder.config_io import shown
from sparsespec.builder.errors import CheckpointError, InputError
from sparsespec.builder.model_config import Family, ModelConfig


def read_model_config(file: GgufMetadata) -> ModelConfig:
    """Raises CheckpointError for an architecture or an option that is not supported, or values that do not fit."""
    family = _family(file)
    _refuse_unsupported(file, family)
    hidden_size = file.require_int(f"{family}.embedding_length")
    num_heads = file.require_int(f"{family}.attention.head_count")
    head_dim = _head_dim(file, family, hidden_size // max(num_heads, 1))
    try:
        return ModelConfig(
            family=family,
            vocab_size=file.get(f"{family}.vocab_size", len(file.strings("tokenizer.ggml.tokens"))),
            hidden_size=hidden_size,
            intermediate_size=file.require_int(f"{family}.feed_forward_length"),
            num_layers=file.require_int(f"{family}.block_count"),
            num_heads=num_heads,
            num_kv_heads=file.get(f"{family}.attention.head_count_kv", num_heads),
            head_dim=head_dim,
            rms_norm_eps=file.decimal(f"{family}.attention.layer_norm_rms_epsilon", 1e-6),
            rope_theta=file.decimal(f"{family}.rope.freq_base", 10000.0),
            max_position_embeddings=file.require_int(f"{family}.context_length"),
            tie_word_embeddings="output.weight" not in file.tensors,
            eos_token_ids=_eos_token_ids(file),
            rope_scaling=read_rope_scaling(file, family, head_dim),
        )
    except CheckpointError:
        raise
    except InputError as error:
        raise CheckpointError(f"{file.path}: {error}") from error


def _family(file: GgufMetadata) -> Family:
    architecture = file.get("general.architecture", "")
    for family in get_args(Family):
        if family == architecture:
            found: Family = family
            return found
    expected = ", ".join(get_args(Family))
    raise CheckpointError(f"{file.path}: general.architecture: expected one of {expected}, found {shown(architecture)}")


def _refuse_unsupported(file: GgufMetadata, family: Family) -> None:
    expectations: tuple[tuple[str, object, object], ...] = (
        ("split.count", file.get("split.count", 1), 1),
        (f"{family}.expert_count", file.get(f"{family}.expert_count", 0), 0),
        (f"{family}.attention.causal", file.get(f"{family}.attention.causal", True), True),
    )
    for key, found, expected in expectations:
        if found != expected:
            raise CheckpointError(f"{file.path}: {key}: only {expected!r} is supported, found {shown(found)}")


def _head_dim(file: GgufMetadata, family: Family, usual: int) -> int:
    head_dim = file.get(f"{family}.attention.key_length", usual)
    for key in (f"{family}.attention.value_length", f"{family}.rope.dimension_count"):
        if file.get(key, head_dim) != head_dim:
            raise CheckpointError(f"{file.path}: {key}: expected head_dim {head_dim}, found {file.get(key, head_dim)}")
    return head_dim


def _eos_token_ids(file: GgufMetadata) -> tuple[int, ...]:
    tokens: list[int] = []
    for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"):
        token = file.get(key, -1)
        if token >= 0 and token not in tokens:
            tokens.append(token)
    return tuple(tokens)
