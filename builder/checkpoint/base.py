"""What every checkpoint reader offers, and the checks that they share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from sparsespec.builder.build_config import DType
from sparsespec.builder.config_io import shown
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.model_config import ModelConfig

EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Checkpoint(Protocol):
    """A model as published: shapes, weights under the names that Hugging Face gives them, and the tokenizer."""

    @property
    def model(self) -> ModelConfig:
        """Shapes and constants of the network."""
        ...

    @property
    def dtype(self) -> DType:
        """The type that the checkpoint is meant to run in; never `auto`."""
        ...

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A floating-point tensor on the CPU, for example `model.layers.0.self_attn.q_proj.weight`.

        Where model.quantization is fp8, a quantised weight is float8_e4m3fn, and its `weight_scale` and `input_scale`,
        of shape (), are float32, finite and above 0.

        Raises CheckpointError naming file, tensor, expected and found, when it is missing, damaged or misshapen.
        """
        ...

    def kv_scale(self, layer: int) -> torch.Tensor | None:
        """What a layer's keys and values are divided by in an FP8 cache: [2, num_kv_heads] float32.

        None where the checkpoint does not say. Raises CheckpointError for one that is misshapen, or not finite and
        above 0.
        """
        ...

    def save_tokenizer(self, directory: Path) -> None:
        """Write the tokenizer and its chat template for PreTrainedTokenizerFast.from_pretrained(directory).

        Raises CheckpointError when there is no usable one, EngineError when `directory` cannot be written.
        """
        ...


def check_tied(checkpoint: Checkpoint, config: Path) -> None:
    """The files of a tied model may hold the embedding a second time, but no other projection.

    For checkpoints that have the second tensor. Raises CheckpointError naming `config`, which says that it is tied.
    """
    shape = (checkpoint.model.vocab_size, checkpoint.model.hidden_size)
    if not torch.equal(checkpoint.tensor(LM_HEAD, shape), checkpoint.tensor(EMBEDDING, shape)):
        raise CheckpointError(f"{config}: tied embeddings: expected {LM_HEAD} to be the embedding, found another")


def check_scale(file: Path, name: str, scale: torch.Tensor) -> None:
    """Raises CheckpointError naming file and tensor unless all its numbers are finite and above 0."""
    unusable = scale[~(scale.isfinite() & (scale > 0))].tolist()
    if unusable:
        raise CheckpointError(f"{file}: {name}: expected a scale that is finite and above 0, found {unusable[0]}")


def check_shape(file: Path, name: str, expected: tuple[int, ...], found: Sequence[int]) -> None:
    """Raises CheckpointError naming file and tensor when the shapes differ."""
    if tuple(found) != expected:
        raise CheckpointError(f"{file}: {name}: expected shape {list(expected)}, found {shown(list(found))}")
