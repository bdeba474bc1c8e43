"""config.json and generation_config.json of a Hugging Face directory, as transformers 4 and 5 write them.

Families, and the defaults of keys that a file leaves out, are those of transformers' config classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from sparsespec.builder.build_config import DType
from sparsespec.builder.checkpoint.hf_json import JsonFile
from sparsespec.builder.checkpoint.hf_rope import read_rope
from sparsespec.builder.checkpoint.modelopt import read_quantization
from sparsespec.builder.config_io import shown
from sparsespec.builder.model_config import Family, ModelConfig


@dataclass(frozen=True)
class _FamilyTraits:
    """What sets a family apart, and the defaults that are its own; None where they follow from other sizes."""

    family: Family
    architecture: str
    max_position_embeddings: int
    num_kv_heads: int | None
    head_dim: int | None
    sliding_window: bool = False


_FAMILIES = {
    traits.family: traits
    for traits in (
        _FamilyTraits("llama", "LlamaForCausalLM", 2048, num_kv_heads=None, head_dim=None),
        _FamilyTraits("qwen2", "Qwen2ForCausalLM", 32768, num_kv_heads=32, head_dim=None, sliding_window=True),
        _FamilyTraits("qwen3", "Qwen3ForCausalLM", 32768, num_kv_heads=32, head_dim=128, sliding_window=True),
    )
}
# Of Qwen2 and Qwen3.
_DEFAULT_MAX_WINDOW_LAYERS = 28
_DEFAULT_SLIDING_WINDOW = 4096


def read_model_config(directory: Path) -> ModelConfig:
    """Raises CheckpointError for a family or an option that is not supported, or values that do not fit."""
    config = JsonFile.read(directory / "config.json")
    traits = _family_traits(config)
    _refuse_unsupported(config, traits)
    _refuse_windows(config, traits)
    num_heads = config.require_int("num_attention_heads")
    max_position_embeddings = config.get("max_position_embeddings", traits.max_position_embeddings)
    rope = read_rope(config, max_position_embeddings)
    with config.naming():
        return ModelConfig(
            family=traits.family,
            vocab_size=config.require_int("vocab_size"),
            hidden_size=config.require_int("hidden_size"),
            intermediate_size=config.require_int("intermediate_size"),
            num_layers=config.require_int("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=_num_kv_heads(config, traits, num_heads),
            head_dim=_head_dim(config, traits, num_heads),
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            rope_theta=rope.theta,
            max_position_embeddings=max_position_embeddings,
            tie_word_embeddings=config.get("tie_word_embeddings", False),
            eos_token_ids=read_eos_token_ids(directory, config),
            rope_scaling=rope.scaling,
            quantization=read_quantization(directory, config),
        )


def read_dtype(directory: Path, stored: DType) -> DType:
    """The `dtype` (or `torch_dtype`) of config.json; `stored`, the type of the weights, when it has none."""
    config = JsonFile.read(directory / "config.json")
    name = config.get("dtype", config.get("torch_dtype", str(stored)))
    for dtype in get_args(DType):
        if dtype == name and dtype != "auto":
            found: DType = dtype
            return found
    raise config.error(f"dtype: expected a floating-point type, found {name!r:.200}")


def read_eos_token_ids(directory: Path, config: JsonFile) -> tuple[int, ...]:
    """The tokens that end a text: those of generation_config.json, else those of config.json."""
    tokens = _own_eos_token_ids(config)
    generation = directory / "generation_config.json"
    if not generation.exists():
        return tokens
    overriding = JsonFile.read(generation)
    return tokens if overriding.values.get("eos_token_id") is None else _own_eos_token_ids(overriding)


def _family_traits(config: JsonFile) -> _FamilyTraits:
    name = config.get("model_type", "")
    traits = next((traits for family, traits in _FAMILIES.items() if family == name), None)
    if traits is None:
        raise config.error(f"model_type: expected one of {', '.join(_FAMILIES)}, found {name!r:.200}")
    architectures = config.values.get("architectures")
    if architectures not in (None, [], [traits.architecture]):
        expected = [traits.architecture]
        raise config.error(f"architectures: only {expected!r} is supported for {name}, found {architectures!r:.200}")
    return traits


def _refuse_unsupported(config: JsonFile, traits: _FamilyTraits) -> None:
    expectations: tuple[tuple[str, object, object], ...] = (
        ("hidden_act", config.get("hidden_act", "silu"), "silu"),
        # Gives Llama and Qwen3 biases on the output projection too. Qwen2 has its own whatever this says.
        ("attention_bias", config.get("attention_bias", False) and traits.family != "qwen2", False),
        ("mlp_bias", config.get("mlp_bias", False), False),
    )
    for key, found, expected in expectations:
        if found != expected:
            raise config.error(f"{key}: only {expected!r} is supported, found {found!r:.200}")


def _refuse_windows(config: JsonFile, traits: _FamilyTraits) -> None:
    """Attention over a sliding window; a switch that no layer would heed is harmless."""
    layer_types = config.values.get("layer_types")
    if layer_types is not None:
        if not isinstance(layer_types, list):
            raise config.error(f"layer_types: expected a list, found {layer_types!r:.200}")
        for kind in layer_types:
            if kind != "full_attention":
                raise config.error(f"layer_types: only 'full_attention' is supported, found {kind!r:.200}")
        return
    if not (traits.sliding_window and config.get("use_sliding_window", False)):
        return
    window = config.values.get("sliding_window", _DEFAULT_SLIDING_WINDOW)  # a null turns it off
    full_layers = config.get("max_window_layers", _DEFAULT_MAX_WINDOW_LAYERS)
    if window is not None and full_layers < config.require_int("num_hidden_layers"):
        raise config.error(
            f"use_sliding_window: only False is supported, found True and a window of {window!r:.200} "
            f"from layer {shown(full_layers)} on"
        )


def _num_kv_heads(config: JsonFile, traits: _FamilyTraits, num_heads: int) -> int:
    # A null is as many as heads in every family, unlike a key that is not there.
    absent = num_heads if "num_key_value_heads" in config.values else traits.num_kv_heads or num_heads
    return config.get("num_key_value_heads", absent)


def _head_dim(config: JsonFile, traits: _FamilyTraits, num_heads: int) -> int:
    absent = traits.head_dim or config.require_int("hidden_size") // max(num_heads, 1)
    return config.get("head_dim", absent)


def _own_eos_token_ids(config: JsonFile) -> tuple[int, ...]:
    value = config.values.get("eos_token_id")
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int for token in tokens):
        raise config.error(f"eos_token_id: expected token ids, found {value!r:.200}")
    return tuple(tokens)
