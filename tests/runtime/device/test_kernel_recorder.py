"""Torch's own traces, read: its clock is the host's, and kernels are told from everything else."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsespec.runtime.device.kernel_recorder import gpu_recorder, read_record
from sparsespec.runtime.gpu_timeline import GpuRecord, KernelRun
from sparsespec.runtime.tracing import HostTrace


def event(category: str, name: str, ts: float) -> dict[str, Any]:
    args = {"device": 1, "context": 1, "stream": 7, "correlation": 5}
    return {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": 7, "ts": ts, "dur": 2.5, "args": args}


def test_kernels_are_told_from_copies_and_the_rest() -> None:
    events = [
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}},
        event("kernel", "second", 30.5),
        event("cuda_runtime", "cudaGraphLaunch", 5.0),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 12.0),
        event("kernel", "first", 20.25),
        event("gpu_memset", "Memset (Device)", 11.0),
    ]
    base = 1_800_000_000_000_000_000
    record = read_record({"baseTimeNanoseconds": base, "traceEvents": events}, base - 1_000_000)
    assert record.kernels == (KernelRun("first", 1020.25, 2.5, 1, 7), KernelRun("second", 1030.5, 2.5, 1, 7))
    assert [(run.name, run.start) for run in record.copies] == [
        ("Memset (Device)", 1011.0),
        ("Memcpy HtoD (Pinned -> Device)", 1012.0),
    ]


def test_torchs_clock_is_the_hosts(tmp_path: Path) -> None:
    """A range of torch's, taken for a kernel, lies within the span around it: 20 ms of it on each side."""
    host = HostTrace()
    path = tmp_path / "torch.json"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        with torch.profiler.record_function("warm up"), host.span("warm up"):
            pass
        with host.span("around"):
            time.sleep(0.02)
            with torch.profiler.record_function("inside"):
                time.sleep(0.02)
            time.sleep(0.02)
    profile.export_chrome_trace(str(path))
    document = json.loads(path.read_text())
    inside = [each for each in document["traceEvents"] if each["name"] == "inside" and each["ph"] == "X"]
    document["traceEvents"] = [{**each, "cat": "kernel", "args": {"device": 0, "stream": 7}} for each in inside]
    (run,) = read_record(document, host.start_unix_ns).kernels
    around = host.spans[-1]
    assert around.start_us + 10_000 < run.start
    assert run.end < around.end_us - 10_000


def test_a_recorder_waits_for_the_gpu_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over torch's profiler of the CPU, which finds no kernels."""
    waited: list[torch.device] = []
    of_the_cpu = partial(torch.profiler.profile, activities=[torch.profiler.ProfilerActivity.CPU])
    monkeypatch.setattr(torch.profiler, "profile", lambda **_: of_the_cpu())
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    recorder = gpu_recorder("cuda:1")
    assert recorder is not None
    recorder.start()
    torch.ones(3).sum()
    assert waited == [torch.device("cuda:1")]
    assert recorder.stop(time.time_ns()) == GpuRecord((), ())
    assert waited == [torch.device("cuda:1")] * 2


def test_the_cpu_has_no_recorder() -> None:
    assert gpu_recorder("cpu") is None
