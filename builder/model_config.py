"""What the network needs to know about a model; the `model` section of an engine's config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparsespec.builder.errors import InputError


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of one decoder-only model. Raises InputError for shapes that do not fit together."""

    family: Literal["llama"]
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

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise InputError(f"head_dim must be even and at least 2 for rotary embeddings, found {self.head_dim}")
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.max_position_embeddings < 1:
            raise InputError(f"max_position_embeddings must be at least 1, found {self.max_position_embeddings}")
        bad = [token for token in self.eos_token_ids if not 0 <= token < self.vocab_size]
        if bad:
            raise InputError(f"eos_token_ids: {bad[0]} is outside the vocabulary of {self.vocab_size}")

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def qkv_size(self) -> int:
        """Rows of the packed projection: queries, then keys, then values."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def kv_bytes_per_token(self, element_size: int) -> int:
        """Bytes of K and V that one token keeps in the cache, over all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * element_size
