"""A profiled run on a GPU: its kernels lie in the time of their steps, and kernels and gaps make up the whole of it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device.kernel_recorder import gpu_recorder
from sparsespec.runtime.gpu_timeline import KernelRun, gpu_steps
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.profile_summary import summarise_profile
from sparsespec.runtime.profile_trace import ProfiledSteps, ProfileTrace
from sparsespec.runtime.tracing import HostTrace, Span
from throughput_study.engines import QWEN3_8B, random_engine
from throughput_study.settings import greedy, limits
from throughput_study.texts import random_prompts
from throughput_study.windows import Load

pytestmark = pytest.mark.gpu

QWEN3 = replace(QWEN3_8B, vocab_size=32000, num_layers=4, eos_token_ids=(2,))
BATCH, PROMPT = 16, 300
STEPS = ProfiledSteps(after=60, number=20)  # every shape has its graph by then
CLOCK_ERROR = 100.0  # microseconds


@pytest.fixture(scope="module")
def trace() -> ProfileTrace:
    engine = random_engine(QWEN3, limits(BATCH, 1000, 4096), torch.device("cuda"))
    trace = ProfileTrace(HostTrace(), gpu_recorder("cuda"), STEPS)
    llm = LLM(engine, SpeculationConfig(min_budget=64), RuntimeConfig(chunk_size=4096, result_lag=1), trace)
    load = Load(llm, random_prompts(QWEN3.vocab_size, BATCH, PROMPT), greedy(600))
    while trace.window is None:
        load.step()
    trace.finish()
    return trace


def kernels_of(trace: ProfileTrace) -> tuple[KernelRun, ...]:
    assert trace.window is not None
    return trace.window.record.kernels


def spans_inside(trace: ProfileTrace, name: str) -> list[Span]:
    window = trace.window
    assert window is not None
    return [each for each in trace.host.spans if each.name == name and window.start <= each.start_us <= window.end]


def by_step(trace: ProfileTrace) -> list[list[KernelRun]]:
    kernels = kernels_of(trace)
    marks = [place for place, run in enumerate(kernels) if "step_rows" in run.name]
    return [list(kernels[first:after]) for first, after in pairwise([*marks, len(kernels)])]


def test_every_step_has_its_kernels(trace: ProfileTrace) -> None:
    steps = by_step(trace)
    assert len(steps) == STEPS.number
    for kernels in steps:
        assert sum("pillar" in run.name for run in kernels) >= QWEN3.num_layers


def test_kernels_run_between_their_launch_and_the_reading_of_their_results(trace: ProfileTrace) -> None:
    """The first results that are read in the window are of the step before it, the last step's are not read in it."""
    launches, waits = spans_inside(trace, "execute"), spans_inside(trace, "wait")
    assert len(launches) == STEPS.number
    for place, kernels in enumerate(by_step(trace)):
        assert kernels[0].start > launches[place].start_us - CLOCK_ERROR
        if place + 1 < len(waits):
            assert max(run.end for run in kernels) < waits[place + 1].end_us + CLOCK_ERROR


def busy(kernels: tuple[KernelRun, ...], start: float, end: float) -> float:
    """When any of them runs."""
    total, reached = 0.0, start
    for run in kernels:
        first, last = max(run.start, reached), min(run.end, end)
        total += max(0.0, last - first)
        reached = max(reached, last)
    return total


def test_kernels_and_gaps_make_up_the_step(trace: ProfileTrace) -> None:
    steps = gpu_steps(kernels_of(trace))
    assert len(steps) == STEPS.number - 1
    for step in steps:
        ran = busy(kernels_of(trace), step.start, step.start + step.duration)
        assert ran + step.idle_inside + step.idle_after == pytest.approx(step.duration, abs=0.1)
        assert ran > 0


def test_the_trace_has_both_sides(trace: ProfileTrace, tmp_path: Path) -> None:
    trace.write(tmp_path / "trace.json")
    events: list[dict[str, Any]] = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    complete = [event for event in events if event["ph"] == "X"]
    assert any("pillar" in event["name"] for event in complete)
    assert {"schedule", "prepare", "execute", "sample", "wait", "update"} <= {event["name"] for event in complete}
    rows = {(event["pid"], event["tid"]) for event in complete}
    for row in rows - {(each["pid"], each["tid"]) for each in complete if each["name"] == "step"}:
        own = sorted((e["ts"], e["ts"] + e["dur"]) for e in complete if (e["pid"], e["tid"]) == row)
        assert all(before[1] <= after[0] + 1e-3 for before, after in pairwise(own))


def test_the_summary_is_of_the_recorded_steps(trace: ProfileTrace) -> None:
    summary = summarise_profile(trace)
    assert summary is not None
    assert summary.num_steps == STEPS.number - 1
    assert summary.timeline is not None
    assert {"attention", "gemm", "sampling", "norms"} <= set(summary.timeline.by_kind)
