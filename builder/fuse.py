"""From Hugging Face's tensors to the executor's fused layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from sparsespec.builder.build_config import KvCacheDType
from sparsespec.builder.checkpoint import Checkpoint
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.fused_weights import (
    INPUT_SCALE,
    KV_SCALE,
    ROW_SCALE,
    WEIGHT_SCALE,
    fused_sources,
    is_quantized,
    scale_source,
)

Shapes = Mapping[str, tuple[int, ...]]
_MOST_RATIO = torch.finfo(torch.float32).max


def fused_weights(
    checkpoint: Checkpoint, dtype: torch.dtype, kv_cache_dtype: KvCacheDType = "auto"
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) in the order of `fused_specs`, contiguous, on the CPU; `dtype` is that of what is not fp8.

    Scales of an FP8 KV cache are 1 where the checkpoint has none.

    Raises CheckpointError for a missing, damaged or misshapen tensor, and for scales of one product that are too far
    apart.
    """
    for name, sources in fused_sources(checkpoint.model).items():
        if is_quantized(checkpoint.model, name):
            yield from _fused_fp8(checkpoint, name, sources)
        else:
            yield name, torch.cat([checkpoint.tensor(source, shape).to(dtype) for source, shape in sources.items()])
    if kv_cache_dtype == "fp8":
        for layer in range(checkpoint.model.num_layers):
            scale = checkpoint.kv_scale(layer)
            yield f"layers.{layer}.{KV_SCALE}", torch.ones(2, checkpoint.model.num_kv_heads) if scale is None else scale


def _fused_fp8(checkpoint: Checkpoint, name: str, sources: Shapes) -> Iterator[tuple[str, torch.Tensor]]:
    """A product, bit for bit, and its scales. Its parts have one input.

    The smallest weight scale is the product's: multiplied by scales of rows that are 1 or more, it cannot have been
    too large for float16 where the result is not.
    """
    scales = {source: checkpoint.tensor(scale_source(source, WEIGHT_SCALE), ()) for source in sources}
    inputs = [checkpoint.tensor(scale_source(source, INPUT_SCALE), ()) for source in sources]
    smallest = torch.stack(list(scales.values())).min()
    yield name, torch.cat([checkpoint.tensor(source, shape) for source, shape in sources.items()])
    yield f"{name}.{WEIGHT_SCALE}", smallest
    yield f"{name}.{INPUT_SCALE}", torch.stack(inputs).max()
    if len(sources) > 1:
        ratios = [_ratio(source, scales[source], smallest).expand(shape[0]) for source, shape in sources.items()]
        yield f"{name}.{ROW_SCALE}", torch.cat(ratios)


def _ratio(source: str, scale: torch.Tensor, smallest: torch.Tensor) -> torch.Tensor:
    """scale / smallest. Raises CheckpointError where that is no float32."""
    ratio = scale / smallest
    if ratio > _MOST_RATIO:
        raise CheckpointError(
            f"{scale_source(source, WEIGHT_SCALE)}: expected at most {_MOST_RATIO:.1e} times the smallest scale that "
            f"is stacked with it, {float(smallest):.1e}, found {float(scale):.1e}"
        )
    return ratio
