"""Readers of model checkpoints: one interface over Hugging Face directories, hub ids and GGUF files."""

from sparsespec.builder.checkpoint.base import Checkpoint
from sparsespec.builder.checkpoint.opening import open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
