"""Readers of model checkpoints: one interface over Hugging Face, TensorRT-LLM and GGUF."""

from sparsespec.builder.checkpoint.base import Checkpoint
from sparsespec.builder.checkpoint.opening import open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
