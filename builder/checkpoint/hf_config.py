"""config.json and generation_config.json of a Hugging Face directory, as transformers 4 and 5 write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from sparsespec.builder.build_config import DType
from sparsespec.builder.config_io import to_float
from sparsespec.builder.errors import CheckpointError, InputError
from sparsespec.builder.input_files import read_json_object
from sparsespec.builder.model_config import ModelConfig

ValueT = TypeVar("ValueT", int, float, bool, str)


@dataclass(frozen=True)
class JsonFile:
    """A parsed JSON object that knows where it came from; a null value counts as absent."""

    path: Path
    values: Mapping[str, Any]

    @staticmethod
    def read(path: Path) -> JsonFile:
        """Raises CheckpointError when the file is missing or not a JSON object."""
        return JsonFile(path, read_json_object(path, CheckpointError, "a Hugging Face model directory"))

    def section(self, key: str) -> JsonFile:
        """The object under `key`, empty when it is absent; errors go on naming this file."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{self.path}: {key}: expected an object, found {value!r}")
        return JsonFile(self.path, value or {})

    def get(self, key: str, default: ValueT) -> ValueT:
        """The value of `key`, which must have the type of `default`."""
        value, kind = self.values.get(key), type(default)
        if value is None:
            return default
        if kind is float and type(value) is int:
            return kind(self._to_float(key, value))
        if type(value) is not kind:
            raise CheckpointError(f"{self.path}: {key}: expected {kind.__name__}, found {value!r}")
        return value

    def require_int(self, key: str) -> int:
        """An integer that must be there."""
        if self.values.get(key) is None:
            raise CheckpointError(f"{self.path}: {key}: expected int, found nothing")
        return self.get(key, 0)

    def _to_float(self, key: str, value: int) -> float:
        try:
            return to_float(value)
        except InputError as error:
            raise CheckpointError(f"{self.path}: {key}: {error}") from None


def read_model_config(directory: Path) -> ModelConfig:
    """Raises CheckpointError for a family or an option that is not supported, or values that do not fit."""
    config = JsonFile.read(directory / "config.json")
    _refuse_unsupported(config)
    num_heads = config.require_int("num_attention_heads")
    hidden_size = config.require_int("hidden_size")
    rope = config.section("rope_parameters")
    try:
        return ModelConfig(
            family="llama",
            vocab_size=config.require_int("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=config.require_int("intermediate_size"),
            num_layers=config.require_int("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads", num_heads),
            head_dim=config.get("head_dim", hidden_size // max(num_heads, 1)),
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta", config.get("rope_theta", 10000.0)),
            max_position_embeddings=config.get("max_position_embeddings", 2048),
            tie_word_embeddings=config.get("tie_word_embeddings", False),
            eos_token_ids=_eos_token_ids(directory, config),
        )
    except CheckpointError:
        raise
    except InputError as error:
        raise CheckpointError(f"{config.path}: {error}") from error


def read_dtype(directory: Path, stored: DType) -> DType:
    """The `dtype` (or `torch_dtype`) of config.json; `stored`, the type of the weights, when it has none."""
    config = JsonFile.read(directory / "config.json")
    name = config.get("dtype", config.get("torch_dtype", str(stored)))
    for dtype in get_args(DType):
        if dtype == name and dtype != "auto":
            found: DType = dtype
            return found
    raise CheckpointError(f"{config.path}: dtype: expected a floating-point type, found {name!r}")


def _refuse_unsupported(config: JsonFile) -> None:
    expectations: tuple[tuple[str, object, object], ...] = (
        ("model_type", config.get("model_type", ""), "llama"),
        ("hidden_act", config.get("hidden_act", "silu"), "silu"),
        ("attention_bias", config.get("attention_bias", False), False),
        ("mlp_bias", config.get("mlp_bias", False), False),
        ("quantization_config", config.values.get("quantization_config"), None),
        ("rope_scaling", _rope_type(config.section("rope_scaling")), "default"),
        ("rope_parameters", _rope_type(config.section("rope_parameters")), "default"),
        ("partial_rotary_factor", _rotary_part(config), 1.0),
    )
    for key, found, expected in expectations:
        if found != expected:
            raise CheckpointError(f"{config.path}: {key}: only {expected!r} is supported, found {found!r}")
    architectures = config.values.get("architectures")
    if architectures not in (None, [], ["LlamaForCausalLM"]):
        raise CheckpointError(
            f"{config.path}: architectures: only ['LlamaForCausalLM'] is supported, found {architectures!r}"
        )


def _rope_type(rope: JsonFile) -> str:
    return rope.get("rope_type", rope.get("type", "default"))


def _rotary_part(config: JsonFile) -> float:
    return config.section("rope_parameters").get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))


def _eos_token_ids(directory: Path, config: JsonFile) -> tuple[int, ...]:
    tokens = _own_eos_token_ids(config)
    generation = directory / "generation_config.json"
    if not generation.exists():
        return tokens
    overriding = JsonFile.read(generation)
    return tokens if overriding.values.get("eos_token_id") is None else _own_eos_token_ids(overriding)


def _own_eos_token_ids(config: JsonFile) -> tuple[int, ...]:
    value = config.values.get("eos_token_id")
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int for token in tokens):
        raise CheckpointError(f"{config.path}: eos_token_id: expected token ids, found {value!r}")
    return tuple(tokens)
