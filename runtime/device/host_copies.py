"""Tensors on their way from the device to the host, which reads them a step or more later."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class HostCopies:
    """Copies in pinned memory and the event that completes them; what is on the host already is copied at once."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """tensors: at least one, all on one device; later work on its current stream may overwrite them."""
        self._host = tuple(_enqueue(each) for each in tensors)
        self._event = torch.cuda.Event() if tensors[0].is_cuda else None
        if self._event:
            self._event.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> tuple[Tensor, ...]:
        """In the order given."""
        if self._event:
            self._event.synchronize()
        return self._host


def _enqueue(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)
