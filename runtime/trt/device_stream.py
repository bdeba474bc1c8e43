"""The device that engines live on, and the stream that they are enqueued on: TensorRT waits on the default one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def current_device(device: torch.device) -> Iterator[None]:
    """Make it the one that CUDA libraries take for theirs, on this thread; nothing on the CPU, where fakes run."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


class DeviceStream:
    """A CUDA stream of its own, in order with the current one; on the CPU none."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def handle(self) -> int:
        """cudaStream_t."""
        return 0 if self.cuda is None else self.cuda.cuda_stream

    @contextmanager
    def after_current(self) -> Iterator[None]:
        """What is enqueued inside follows the current stream's work, and that goes on after it. Nobody waits here."""
        if self.cuda is None:
            yield
            return
        current = torch.cuda.current_stream(self.device)
        self.cuda.wait_stream(current)
        try:
            yield
        finally:
            current.wait_stream(self.cuda)
