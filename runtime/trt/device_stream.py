"""The stream that engines are enqueued on: TensorRT makes the host wait on the default one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DeviceStream:
    """A CUDA stream of its own, in order with the current one; on the CPU, where fakes run, none."""

    def __init__(self, device: torch.device) -> None:
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
        current = torch.cuda.current_stream(self.cuda.device)
        self.cuda.wait_stream(current)
        yield
        current.wait_stream(self.cuda)
