"""From Hugging Face's tensors to the executor's fused layout."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sparsespec.builder.checkpoint import Checkpoint
from sparsespec.builder.fused_weights import fused_sources


def fused_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) as `fused_sources(checkpoint.model)` lists them, contiguous, on the CPU, in `dtype`.

    Raises CheckpointError for a missing, damaged or misshapen tensor.
    """
    for name, sources in fused_sources(checkpoint.model).items():
        parts = [checkpoint.tensor(source, shape).to(dtype) for source, shape in sources.items()]
        yield name, torch.cat(parts)
