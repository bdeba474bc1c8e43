"""What a profile amounts to: how long steps took, and what host and GPU did in them. No torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from sparsespec.runtime.gpu_timeline import Timeline, gpu_steps, summarise
from sparsespec.runtime.profile_trace import ProfileTrace
from sparsespec.runtime.tracing import Span

VERBS = ("schedule", "prepare", "execute", "sample", "wait", "update")


@dataclass(frozen=True)
class VerbTime:
    """A verb's share of the host's time."""

    verb: str
    mean_us: float  # a step


@dataclass(frozen=True)
class ProfileSummary:
    """Of the steps whose kernels were recorded, or of all where none were."""

    num_steps: int
    median_ms: float
    p99_ms: float
    verbs: tuple[VerbTime, ...]  # of the host, in their order
    timeline: Timeline | None  # of the GPU; None without two steps in CUDA graphs


def summarise_profile(trace: ProfileTrace) -> ProfileSummary | None:
    """None where no step was recorded."""
    spans, window = trace.host.spans, trace.window
    kernels = () if window is None else window.record.kernels
    steps = [span for span in spans if span.name == "step"]
    if window is not None:
        steps = [step for step in steps if window.start <= step.start_us and step.end_us <= window.end]
    if not steps:
        return None
    times = sorted(step.duration_us / 1000 for step in steps)
    return ProfileSummary(
        num_steps=len(steps),
        median_ms=median(times),
        p99_ms=times[len(times) * 99 // 100],
        verbs=_verbs(steps, spans),
        timeline=summarise(kernels) if gpu_steps(kernels) else None,
    )


def _verbs(steps: Sequence[Span], spans: Sequence[Span]) -> tuple[VerbTime, ...]:
    """Means over steps; what these have beside their verbs comes last, and the trace's own counting is in it."""
    starts = [step.start_us for step in steps]
    sums = dict.fromkeys(VERBS, 0.0)
    for span in spans:
        place = bisect_right(starts, span.start_us) - 1
        if span.name in sums and place >= 0 and span.end_us <= steps[place].end_us:
            sums[span.name] += span.duration_us
    verbs = [VerbTime(verb, total / len(steps)) for verb, total in sums.items()]
    rest = fmean(step.duration_us for step in steps) - sum(verb.mean_us for verb in verbs)
    return (*verbs, VerbTime("else", rest))
