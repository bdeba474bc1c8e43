"""The GPUs that PyTorch can use."""

from __future__ import annotations

from dataclasses import dataclass


class NoGpuError(RuntimeError):
    """PyTorch has no GPU; the message says why."""


@dataclass(frozen=True)
class Gpu:
    """One CUDA device under PyTorch's number."""

    index: int
    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int | None  # None where the GPU has no room even for asking


def visible_gpus() -> tuple[Gpu, ...]:
    """One or more GPUs. NoGpuError if there is none."""
    try:
        import torch
    except (ImportError, OSError) as error:
        raise NoGpuError(f"PyTorch cannot be imported: {error}") from error
    if not torch.cuda.is_available():
        raise NoGpuError(_reason())
    return tuple(_gpu(index) for index in range(torch.cuda.device_count()))


def _gpu(index: int) -> Gpu:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return Gpu(
        index=index,
        name=properties.name,
        capability=(properties.major, properties.minor),
        total_bytes=properties.total_memory,
        free_bytes=_free_bytes(index),
    )


def _free_bytes(index: int) -> int | None:
    import torch

    try:
        return torch.cuda.mem_get_info(index)[0]
    except RuntimeError:
        return None


def _reason() -> str:
    """What PyTorch says when it has to start CUDA."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"PyTorch: {error}".splitlines()[0]
    return "PyTorch finds no GPU"
