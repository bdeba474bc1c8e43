"""The closing table of a profile, on a made-up GPU."""

from __future__ import annotations

import io

from rich.console import Console

from sparsespec.runtime.cli.profile import profile_table
from sparsespec.runtime.gpu_timeline import GpuRecord, KernelRun
from sparsespec.runtime.profile_trace import GpuWindow, ProfiledSteps, ProfileTrace
from sparsespec.runtime.tracing import HostTrace, Span

KERNELS = (
    KernelRun("step_rows_kernel", 100, 100),
    KernelRun("pillar_attention_kernel", 200, 500),
    KernelRun("nvjet_gemm", 750, 200),
    KernelRun("step_rows_kernel", 1100, 100),
)


def lines_of(trace: ProfileTrace) -> list[str]:
    printed = io.StringIO()
    Console(width=96, file=printed).print(profile_table(trace))
    return [" ".join(line.split()) for line in printed.getvalue().splitlines() if line.strip()]


def trace_of(kernels: tuple[KernelRun, ...], max_steps: int = 10) -> ProfileTrace:
    trace = ProfileTrace(HostTrace(max_steps), None, ProfiledSteps(32, 64))
    trace.host.spans += [Span("execute", 10, 40, 1), Span("step", 0, 1000, 1)]
    trace.window = GpuWindow(0, 2000, GpuRecord(kernels, ()))
    return trace


def test_kinds_longest_first_and_gaps() -> None:
    lines = lines_of(trace_of(KERNELS))
    assert lines[:2] == ["profile", "step 1.000 ms median of 1 steps; p99 1.000 ms"]
    assert "execute 40 us host, mean a step" in lines
    assert lines[lines.index("GPU 1.000 ms 3 kernels a step") + 1 :] == [
        "attention 0.500 ms 50.0%",
        "products 0.200 ms 20.0%",
        "sampling 0.100 ms 10.0%",
        "idle between graphs 0.150 ms 15.0%",
        "idle inside graphs 0.050 ms 5.0%",
        "GPU: of 1 steps, mean; kernels may overlap, so parts can add up to more than 100%.",
    ]


def test_kernels_that_are_in_no_graph() -> None:
    lines = lines_of(trace_of(KERNELS[1:3]))
    assert lines[-1] == "No step ran in a CUDA graph: the kernels are in the trace alone."


def test_a_full_trace_is_told() -> None:
    assert " ".join(lines_of(trace_of(KERNELS, max_steps=0))).endswith("The trace holds the first 20,000 steps.")


def test_nothing_was_recorded() -> None:
    trace = ProfileTrace(HostTrace(), None, ProfiledSteps(32, 64))
    assert lines_of(trace) == ["profile: no step was recorded"]
