"""What the GPU runs, by torch's profiler, on the clock of Unix time. Its buffers grow with every kernel."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparsespec.runtime.gpu_timeline import GpuRecord, KernelRun

# Torch's categories of what runs on a GPU.
_KERNELS = ("kernel",)
_COPIES = ("gpu_memcpy", "gpu_memset")


class KernelRecorder:
    """Records a GPU between start and stop, once; it has nothing to do at either."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])

    def start(self) -> None:
        """The first start of a process takes a second or so."""
        torch.cuda.synchronize(self._device)
        self._profile.start()

    def stop(self, origin_unix_ns: int) -> GpuRecord:
        """What has run since start, in microseconds after origin_unix_ns."""
        torch.cuda.synchronize(self._device)
        self._profile.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernels.json"
            self._profile.export_chrome_trace(str(path))
            return read_record(json.loads(path.read_text(encoding="utf-8")), origin_unix_ns)


def gpu_recorder(device: str) -> KernelRecorder | None:
    """Of a torch device; None for the CPU."""
    return None if device == "cpu" else KernelRecorder(torch.device(device))


def read_record(trace: Mapping[str, Any], origin_unix_ns: int) -> GpuRecord:
    """Of a trace as torch writes it, whose times count from a base of its own."""
    offset = (trace["baseTimeNanoseconds"] - origin_unix_ns) / 1000
    return GpuRecord(_runs(trace, _KERNELS, offset), _runs(trace, _COPIES, offset))


def _runs(trace: Mapping[str, Any], categories: Sequence[str], offset: float) -> tuple[KernelRun, ...]:
    runs = [_run(event, offset) for event in trace["traceEvents"] if event.get("cat") in categories]
    return tuple(sorted(runs, key=lambda run: run.start))


def _run(event: Mapping[str, Any], offset: float) -> KernelRun:
    where = event["args"]
    return KernelRun(event["name"], event["ts"] + offset, event["dur"], where["device"], where["stream"])
