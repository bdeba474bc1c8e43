"""From Hugging Face's tensors to the executor's fused layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from sparsespec.builder.checkpoint import Checkpoint
from sparsespec.builder.fused_weights import INPUT_SCALE, WEIGHT_SCALE, fused_sources, is_quantized, scale_source

Shapes = Mapping[str, tuple[int, ...]]
# The largest number of float8_e4m3fn.
MAX_FP8 = 448.0


def fused_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) in the order of `fused_specs`, contiguous, on the CPU; `dtype` is that of what is not fp8.

    Raises CheckpointError for a missing, damaged or misshapen tensor.
    """
    for name, sources in fused_sources(checkpoint.model).items():
        if is_quantized(checkpoint.model, name):
            yield from _fused_fp8(checkpoint, name, sources)
        else:
            yield name, torch.cat([checkpoint.tensor(source, shape).to(dtype) for source, shape in sources.items()])


def rescaled(weight: torch.Tensor, scale: torch.Tensor, new_scale: torch.Tensor) -> torch.Tensor:
    """weight * scale as float8_e4m3fn of another scale, saturated; bit for bit the same where the scale is the same."""
    if scale == new_scale:
        return weight
    return (weight.float() * (scale / new_scale)).clamp(-MAX_FP8, MAX_FP8).to(torch.float8_e4m3fn)


def _fused_fp8(checkpoint: Checkpoint, name: str, sources: Shapes) -> Iterator[tuple[str, torch.Tensor]]:
    """A product and its scales: the largest of its parts', which have the same input."""
    scales = [checkpoint.tensor(scale_source(source, WEIGHT_SCALE), ()) for source in sources]
    largest = torch.stack(scales).max()
    parts = [
        rescaled(checkpoint.tensor(source, shape), scale, largest)
        for (source, shape), scale in zip(sources.items(), scales, strict=True)
    ]
    inputs = [checkpoint.tensor(scale_source(source, INPUT_SCALE), ()) for source in sources]
    yield name, torch.cat(parts)
    yield f"{name}.{WEIGHT_SCALE}", largest
    yield f"{name}.{INPUT_SCALE}", torch.stack(inputs).max()
