"""--profile: the trace of a run, and its table."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from sparsespec.runtime.cli.run_config import RunConfig
from sparsespec.runtime.cli.summary_table import Row, rows_table
from sparsespec.runtime.gpu_timeline import Timeline
from sparsespec.runtime.profile_summary import ProfileSummary, summarise_profile
from sparsespec.runtime.profile_trace import ProfiledSteps, ProfileTrace
from sparsespec.runtime.tracing import MAX_STEPS, HostTrace

_NAMES = {"gemm": "products", "norms": "norms, activations"}
_NO_KERNELS = "No kernels: a GPU's are recorded in {number} steps after the first {after} without prompts."
_NO_GRAPHS = "No step ran in a CUDA graph: the kernels are in the trace alone."
_OVERLAP = "GPU: of {steps} steps, mean; kernels may overlap, so parts can add up to more than 100%."
_FULL = f"The trace holds the first {MAX_STEPS:,} steps."


def profile_trace(config: RunConfig, device: str) -> ProfileTrace:
    """What records a run on a device as RuntimeConfig names it. Raises InputError where there is no such device."""
    from sparsespec.runtime.device.kernel_recorder import gpu_recorder  # torch
    from sparsespec.runtime.loading import resolve_device

    steps = ProfiledSteps(config.profile_after, config.profile_steps)
    return ProfileTrace(HostTrace(), gpu_recorder(resolve_device(device)), steps)


def profile_table(trace: ProfileTrace) -> RenderableType:
    """Where the time of a step goes."""
    summary = summarise_profile(trace)
    if summary is None:
        return Text("profile: no step was recorded")
    rows = [*_host_rows(summary), *([] if summary.timeline is None else _gpu_rows(summary.timeline))]
    return Group("", rows_table("profile", rows), "", Text(_footnote(trace, summary), style="dim"))


def _host_rows(summary: ProfileSummary) -> list[Row]:
    note = f"median of {summary.num_steps:,} steps; p99 {summary.p99_ms:.3f} ms"
    verbs = [Row(f"  {each.verb}", f"{each.mean_us:,.0f} us", "host, mean a step") for each in summary.verbs]
    return [Row("step", f"{summary.median_ms:.3f} ms", note), *verbs]


def _gpu_rows(timeline: Timeline) -> list[Row]:
    times = {_NAMES.get(kind, kind): time for kind, time in sorted(timeline.by_kind.items(), key=_longest_first)}
    times |= {"idle between graphs": timeline.between_graphs_ms, "idle inside graphs": timeline.inside_graphs_ms}
    parts = [Row(f"  {name}", f"{time:.3f} ms", f"{time / timeline.step_ms:.1%}") for name, time in times.items()]
    return [Row("GPU", f"{timeline.step_ms:.3f} ms", f"{timeline.kernels_per_step:,.0f} kernels a step"), *parts]


def _longest_first(part: tuple[str, float]) -> float:
    return -part[1]


def _footnote(trace: ProfileTrace, summary: ProfileSummary) -> str:
    sentences = [_gpu_note(trace, summary)]
    if trace.host.is_full:
        sentences.append(_FULL)
    return " ".join(sentences)


def _gpu_note(trace: ProfileTrace, summary: ProfileSummary) -> str:
    if trace.window is None:
        return _NO_KERNELS.format(number=trace.steps.number, after=trace.steps.after)
    return _NO_GRAPHS if summary.timeline is None else _OVERLAP.format(steps=summary.timeline.num_steps)
