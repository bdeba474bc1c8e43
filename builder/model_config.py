"""What the network needs to know about a model; the `model` section of an engine's config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparsespec.builder.config_io import check_range, shown
from sparsespec.builder.errors import InputError
from sparsespec.builder.rope import RopeScaling, check_divisor, check_positive

Family = Literal["llama", "qwen2", "qwen3"]
Quantization = Literal["fp8"]

MAX_LAYERS = 1000
# Each has a place in every request's fixed row of stop tokens.
MAX_EOS_TOKEN_IDS = 16


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of one decoder-only model. Raises InputError for shapes that do not fit together."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    rope_scaling: RopeScaling | None = None
    quantization: Quantization | None = None  # of the four products of each layer; see fused_weights

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim")
        for name in (*sizes, "max_position_embeddings"):
            check_range(name, getattr(self, name), least=1)
        check_range("num_layers", self.num_layers, least=1, most=MAX_LAYERS)
        if self.head_dim % 2:
            raise InputError(f"head_dim must be even for rotary embeddings, found {self.head_dim}")
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        check_positive("rms_norm_eps", self.rms_norm_eps)
        check_divisor("rope_theta", self.rope_theta)
        if self.rope_theta <= 1 and self.rope_scaling is not None:
            raise InputError(f"rope_theta must be above 1 to be scaled, found {self.rope_theta}")
        if len(self.eos_token_ids) > MAX_EOS_TOKEN_IDS:
            raise InputError(f"eos_token_ids: at most {MAX_EOS_TOKEN_IDS}, found {len(self.eos_token_ids)}")
        bad = [token for token in self.eos_token_ids if not 0 <= token < self.vocab_size]
        if bad:
            raise InputError(f"eos_token_ids: {shown(bad[0])} is outside the vocabulary of {self.vocab_size}")

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.family == "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Whether every query and key head has an RMSNorm over head_dim, before RoPE."""
        return self.family == "qwen3"

    def kv_bytes_per_token(self, element_size: int) -> int:
        """Bytes of K and V that one token keeps in the cache, over all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * element_size
