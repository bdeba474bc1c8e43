"""Host and GPU in one trace: the window of steps, one clock, and what a profile amounts to. The GPU is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.gpu_timeline import GpuRecord, KernelRun
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.profile_summary import VERBS, summarise_profile
from sparsespec.runtime.profile_trace import GpuWindow, ProfiledSteps, ProfileTrace
from sparsespec.runtime.tracing import HostTrace, Span
from tiny_llm import greedy, random_prompts, tiny_engine

SPECULATION = SpeculationConfig(k=4, min_budget=16)
PROMPTS = random_prompts((40, 22, 61))


class MadeUpGpu:
    """Runs a step_rows kernel of 2 us whenever asked, and tells times as after the origin that it is given."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.started_ns: list[int] = []  # Unix time

    def run_kernel(self, unix_ns: int) -> None:
        self.started_ns.append(unix_ns)

    def start(self) -> None:
        self.calls.append("start")

    def stop(self, origin_unix_ns: int) -> GpuRecord:
        self.calls.append("stop")
        starts = [(started - origin_unix_ns) / 1000 for started in self.started_ns]
        return GpuRecord(tuple(KernelRun("step_rows_kernel", start, 2.0) for start in starts), ())


def profiled(steps: ProfiledSteps, max_tokens: int = 20) -> tuple[ProfileTrace, MadeUpGpu]:
    gpu = MadeUpGpu()
    trace = ProfileTrace(HostTrace(), gpu, steps)
    LLM(tiny_engine(), SPECULATION, recorder=trace).generate(PROMPTS, greedy(max_tokens))
    trace.finish()
    return trace, gpu


def steps_inside(trace: ProfileTrace) -> list[int]:
    """Which whole steps lie in the window."""
    assert trace.window is not None
    steps = [span for span in trace.host.spans if span.name == "step"]
    window = trace.window
    return [place for place, step in enumerate(steps) if window.start <= step.start_us <= step.end_us <= window.end]


def test_a_window_has_its_steps() -> None:
    """The prompts take a step that does not count. The window opens and closes while a step is under way."""
    trace, gpu = profiled(ProfiledSteps(after=3, number=5))
    assert gpu.calls == ["start", "stop"]
    assert steps_inside(trace) == [5, 6, 7, 8]
    assert len([span for span in trace.host.spans if span.name == "step"]) > 10


def test_a_run_may_end_in_its_window() -> None:
    trace, gpu = profiled(ProfiledSteps(after=3, number=1000))
    assert gpu.calls == ["start", "stop"]
    assert steps_inside(trace)[0] == 5


def test_a_run_may_end_before_its_window() -> None:
    trace, gpu = profiled(ProfiledSteps(after=1000, number=5))
    assert (gpu.calls, trace.window) == ([], None)


def test_kernels_and_spans_share_a_clock(tmp_path: Path) -> None:
    gpu = MadeUpGpu()
    host = HostTrace()
    trace = ProfileTrace(host, gpu, ProfiledSteps(after=2, number=4))
    llm = LLM(tiny_engine(), SPECULATION, recorder=trace)
    llm.add_request(PROMPTS[0], greedy(30))
    for _ in range(8):
        with trace.span("around"):
            gpu.run_kernel(host.start_unix_ns + int(host.now_us * 1000))
            llm.step()
    trace.write(tmp_path / "trace.json")
    events: list[dict[str, Any]] = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    around = [event for event in events if event["name"] == "around"]
    kernels = [event for event in events if event["name"] == "step_rows_kernel"]
    assert len(around) == len(kernels) == 8
    for kernel, span in zip(kernels, around, strict=True):
        assert span["ts"] <= kernel["ts"] + 1  # nanoseconds are cut off
        assert kernel["ts"] <= span["ts"] + span["dur"]
        assert kernel["pid"] != span["pid"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert sorted(names.values()) == ["GPU 0", "host"]


def test_without_a_gpu_it_is_the_hosts_trace() -> None:
    trace = ProfileTrace(HostTrace(), None, ProfiledSteps(after=2, number=4))
    LLM(tiny_engine(), SPECULATION, recorder=trace).generate(PROMPTS, greedy(20))
    assert trace.window is None
    assert len(trace.host.counts) == [span.name for span in trace.host.spans].count("step")


def made_up_trace(durations: list[float]) -> ProfileTrace:
    """Steps after each other, each with a schedule of 2 us and an update of 3 us in it."""
    trace = ProfileTrace(HostTrace(), None, ProfiledSteps(0, 1))
    start = 0.0
    for duration in durations:
        trace.host.spans.append(Span("schedule", start + 1, 2, 1))
        trace.host.spans.append(Span("update", start + 4, 3, 1))
        trace.host.spans.append(Span("step", start, duration, 1))
        start += duration
    return trace


def test_a_summary_has_medians_and_means() -> None:
    trace = made_up_trace([10.0] * 50 + [20.0] * 49 + [1000.0])
    trace.host.spans.append(Span("update", 2030, 500, 1))  # in no step
    summary = summarise_profile(trace)
    assert summary is not None
    assert (summary.num_steps, summary.median_ms, summary.p99_ms, summary.timeline) == (100, 0.015, 1.0, None)
    times = {each.verb: each.mean_us for each in summary.verbs}
    assert list(times) == [*VERBS, "else"]
    assert (times["schedule"], times["update"], times["execute"]) == (2, 3, 0)
    assert sum(times.values()) == pytest.approx((500 + 980 + 1000) / 100)


def test_a_summary_is_of_the_window() -> None:
    trace = made_up_trace([10.0] * 10)
    kernels = tuple(KernelRun("step_rows_kernel", at, 4.0) for at in (31.0, 41.0, 51.0))
    trace.window = GpuWindow(25.0, 65.0, GpuRecord(kernels, ()))
    summary = summarise_profile(trace)
    assert summary is not None
    assert summary.num_steps == 3
    assert summary.timeline is not None
    assert summary.timeline.num_steps == 2
    assert summary.timeline.between_graphs_ms == pytest.approx(0.006)


def test_nothing_is_summed_up_without_steps() -> None:
    assert summarise_profile(made_up_trace([])) is None
