"""Steps on a GPU from lists of kernels: what is idle, what overlaps, what is which kind; and their rows in a trace."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest

from sparsespec.runtime.gpu_timeline import GpuRecord, KernelRun, gpu_steps, kind_of, summarise
from sparsespec.runtime.gpu_trace import gpu_events


def runs(*parts: tuple[str, float, float]) -> list[KernelRun]:
    return [KernelRun(name, start, duration) for name, start, duration in parts]


TWO_STEPS = runs(
    ("step_rows_kernel", 0, 10),
    ("nvjet_gemm", 10, 40),
    ("pillar_attention_kernel", 45, 50),
    ("sample_rows_kernel", 100, 30),
    ("step_rows_kernel", 150, 10),
    ("nvjet_gemm", 160, 40),
    ("pillar_attention_kernel", 205, 50),
    ("add_rms_norm_kernel", 255, 25),
    ("step_rows_kernel", 300, 10),
)


def test_idle_time_is_told_apart() -> None:
    """Two steps: 20 us before each, 5 us inside each; the gemm overlaps what comes after it."""
    timeline = summarise(TWO_STEPS)
    assert timeline.num_steps == 2
    assert timeline.step_ms == pytest.approx(0.150)
    assert timeline.between_graphs_ms == pytest.approx(0.020)
    assert timeline.inside_graphs_ms == pytest.approx(0.005)
    assert timeline.kernels_per_step == 4
    assert timeline.by_kind == pytest.approx({"sampling": 0.025, "gemm": 0.04, "attention": 0.05, "norms": 0.0125})


def test_each_step_has_its_own_gaps() -> None:
    first, second = gpu_steps(TWO_STEPS)
    assert (first.start, first.duration, first.idle_inside, first.idle_after) == (0, 150, 5, 20)
    assert (second.start, second.duration, second.idle_inside, second.idle_after) == (150, 150, 5, 20)
    assert first.busy == 125


@pytest.mark.parametrize("kernels", [[], runs(("step_rows_kernel", 0, 10)), runs(("nvjet_gemm", 0, 10))])
def test_there_may_be_no_whole_step(kernels: list[KernelRun]) -> None:
    assert gpu_steps(kernels) == []


def test_kernels_before_the_first_step_belong_to_none() -> None:
    (step,) = gpu_steps(runs(("late_kernel", 0, 5), ("step_rows_kernel", 9, 1), ("step_rows_kernel", 10, 1)))
    assert (step.start, step.duration, step.num_kernels, step.busy) == (9, 1, 1, 1)


def test_a_kernel_that_outlasts_its_step_leaves_no_gap() -> None:
    (step,) = gpu_steps(runs(("step_rows_kernel", 0, 1), ("side", 1, 50), ("step_rows_kernel", 20, 1)))
    assert (step.idle_inside, step.idle_after) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_gaps_are_when_no_stream_is_busy(seed: int) -> None:
    """Against a count of microseconds one by one, over kernels of three streams that overlap at will."""
    rng = Random(seed)
    drawn = [KernelRun("work", rng.randrange(400), rng.randrange(1, 9), 0, rng.randrange(3)) for _ in range(60)]
    marks = [KernelRun("step_rows_kernel", start, 3) for start in (0, 130, 250, 400)]
    kernels = sorted([*marks, *drawn], key=lambda run: run.start)  # a step's first kernel is first
    busy = {at for run in kernels for at in range(int(run.start), int(run.end))}
    steps = gpu_steps(kernels)
    assert [step.start for step in steps] == [0, 130, 250]
    for step in steps:
        own = range(int(step.start), int(step.start + step.duration))
        last = max(at for at in own if at in busy)
        assert step.busy == sum(at in busy for at in own)
        assert step.idle_after == own[-1] - last


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void sparsespec::pillar_select_kernel<__half, 64>", "select"),
        ("void sparsespec::unite_kernel<sparsespec::KernelKind<", "attention"),
        ("nvjet_sm90_tst_192x96_64x5_2x1_v_bz_TNT", "gemm"),
        ("void cublasLt::splitKreduce_kernel<32, 16", "gemm"),
        ("void sparsespec::accept_drafts_kernel<__nv_bfloat16>", "sampling"),
        ("void sparsespec::add_rms_norm_kernel<", "norms"),
        ("void sparsespec::silu_mul_kernel<", "norms"),
        ("void at::native::vectorized_elementwise_kernel<4", "other"),
    ],
)
def test_kinds_of_kernels(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def rows_of(events: list[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    complete = [event for event in events if event["ph"] == "X"]
    return {
        (each["pid"], each["tid"]): [e for e in complete if (e["pid"], e["tid"]) == (each["pid"], each["tid"])]
        for each in complete
    }


def test_rows_of_a_trace_do_not_overlap() -> None:
    """Two streams of two devices, whose launches may start early."""
    rng = Random(1)
    kernels = [
        KernelRun(f"k{place}", rng.randrange(500), rng.randrange(1, 20), rng.randrange(2), rng.choice((7, 20)))
        for place in range(100)
    ]
    record = GpuRecord(tuple(sorted(kernels, key=lambda run: run.start)), (KernelRun("Memcpy", 3, 4, 0, 7),))
    events: list[dict[str, Any]] = gpu_events(record)
    rows = rows_of(events)
    assert sum(map(len, rows.values())) == 101
    for row in rows.values():
        assert all(before["ts"] + before["dur"] <= after["ts"] for before, after in pairwise(row))
    named = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert set(named) == set(rows)
    assert set(named.values()) == {"stream 7", "stream 7, early", "stream 20", "stream 20, early"}


def test_a_trace_tells_each_steps_gaps() -> None:
    events: list[dict[str, Any]] = gpu_events(GpuRecord(tuple(TWO_STEPS), ()))
    idle = [(event["ts"], event["args"]) for event in events if event["ph"] == "C"]
    assert idle == [(at, {"inside the graph": 5, "before the next": 20}) for at in (0, 150)]


def test_an_empty_record_leaves_nothing() -> None:
    assert gpu_events(GpuRecord((), ())) == []
