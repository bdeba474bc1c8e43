"""What a step leaves in a trace: JSON that Chrome reads, spans that nest, counts that are the step's."""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsespec.builder.errors import InputError
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.tracing import HostTrace, NoRecorder, NvtxRanges, Span
from tiny_llm import greedy, random_prompts, tiny_engine

SPECULATION = SpeculationConfig(k=4, min_budget=16)
PROMPTS = random_prompts((40, 22, 61))


def events_of(trace: HostTrace, path: Path) -> list[dict[str, Any]]:
    trace.write(path)
    document = json.loads(path.read_text())
    assert list(document) == ["traceEvents", "displayTimeUnit"]
    return list(document["traceEvents"])


@pytest.fixture
def traced() -> tuple[LLM, HostTrace]:
    trace = HostTrace()
    llm = LLM(tiny_engine(), SPECULATION, recorder=trace)
    llm.generate(PROMPTS, greedy(20))
    return llm, trace


def test_verbs_lie_within_their_step(traced: tuple[LLM, HostTrace], tmp_path: Path) -> None:
    events = [event for event in events_of(traced[1], tmp_path / "trace.json") if event["ph"] == "X"]
    steps = [event for event in events if event["name"] == "step"]
    verbs = [
        event for event in events if event["name"] in ("schedule", "prepare", "execute", "sample", "wait", "update")
    ]
    assert all(end_of(earlier) <= later["ts"] for earlier, later in pairwise(steps))
    assert all(end_of(earlier) <= later["ts"] for earlier, later in pairwise(verbs))
    for name in ("schedule", "prepare", "execute", "sample"):
        own = [event for event in verbs if event["name"] == name]
        assert len(own) == len(steps)
        for step, verb in zip(steps, own, strict=True):
            assert step["ts"] <= verb["ts"] <= end_of(verb) <= end_of(step)


def end_of(event: dict[str, Any]) -> float:
    return float(event["ts"] + event["dur"]) - 1e-6  # rounding of the sum


def test_counts_are_those_of_the_steps(traced: tuple[LLM, HostTrace], tmp_path: Path) -> None:
    llm, trace = traced
    events = [event for event in events_of(trace, tmp_path / "trace.json") if event["ph"] == "C"]
    rows = [event["args"] for event in events if event["name"] == "rows"]
    tokens = [event["args"]["tokens"] for event in events if event["name"] == "KV tokens"]
    pages = [event["args"]["used"] for event in events if event["name"] == "KV pages"]
    free = [event["args"]["free"] for event in events if event["name"] == "KV pages"]
    slots = [event["args"]["in the step"] for event in events if event["name"] == "requests"]
    assert len(rows) == len(tokens) == len(pages) == len(slots) == len(trace.counts)
    assert sum(each["prefill"] for each in rows) == sum(map(len, PROMPTS))
    assert rows[0] == {"prefill": sum(map(len, PROMPTS)), "draft": 0, "verify": 0}
    assert all(each["verify"] % 5 == 0 for each in rows)
    assert sum(each["draft"] for each in rows) * 5 == sum(each["verify"] for each in rows) * 4
    assert (tokens[0], slots[0], max(slots)) == (0, 3, 3)
    assert max(tokens) <= sum(map(len, PROMPTS)) + 3 * 19
    assert {used + left for used, left in zip(pages, free, strict=True)} == {llm.kv_cache.num_pages}
    page_size = llm.kv_cache.page_size
    assert all(used * page_size >= held for used, held in zip(pages, tokens, strict=True))


def test_tokens_are_counted_when_they_arrive(traced: tuple[LLM, HostTrace], tmp_path: Path) -> None:
    events = events_of(traced[1], tmp_path / "trace.json")
    out = [event["args"]["tokens"] for event in events if event["name"] == "tokens out"]
    assert len(out) == sum(event["name"] == "update" for event in events)
    assert sum(out) == 3 * 20


def test_a_trace_keeps_its_first_steps() -> None:
    trace = HostTrace(max_steps=4)
    LLM(tiny_engine(), SPECULATION, recorder=trace).generate(PROMPTS, greedy(20))
    assert (len(trace.counts), trace.is_full) == (4, True)
    assert [span.name for span in trace.spans].count("step") == 4
    assert len(trace.gains) == 3  # the fourth step's results come in the fifth


def test_a_finished_trace_keeps_nothing_more() -> None:
    trace = HostTrace()
    trace.finish()
    LLM(tiny_engine(), SPECULATION, recorder=trace).generate(PROMPTS, greedy(3))
    assert (trace.spans, trace.counts, trace.gains) == ([], [], [])


def test_counts_say_what_moves_to_host_memory(tmp_path: Path) -> None:
    """Three requests of up to 6 pages in a pool of 8."""
    trace = HostTrace()
    config = RuntimeConfig(max_tokens_in_paged_kv_cache=64, kv_cache_host_memory_bytes=2**24)
    LLM(tiny_engine(), SPECULATION, config, trace).generate(random_prompts((8, 8, 8)), greedy(35))
    events = [event for event in events_of(trace, tmp_path / "trace.json") if event["ph"] == "C"]
    moved = [event["args"] for event in events if event["name"] == "KV pages moved"]
    kept = [event["args"]["used"] for event in events if event["name"] == "host pages"]
    assert sum(each["out"] for each in moved) == sum(each["in"] for each in moved) > 0
    assert kept[[each["out"] > 0 for each in moved].index(True)] > 0
    assert kept[-1] == 0


def test_threads_have_names(tmp_path: Path) -> None:
    trace = HostTrace()

    def work() -> None:
        with trace.span("elsewhere"):
            pass

    thread = threading.Thread(target=work, name="helper")
    with trace.span("here"):
        thread.start()
        thread.join()
    events = events_of(trace, tmp_path / "trace.json")
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {event["name"]: names[event["tid"]] for event in events if event["ph"] == "X"} == {
        "elsewhere": "helper",
        "here": threading.current_thread().name,
    }


def test_a_span_ends_with_an_error() -> None:
    trace = HostTrace()
    with pytest.raises(KeyError), trace.span("failing"):
        raise KeyError("x")
    assert [span.name for span in trace.spans] == ["failing"]


def test_a_cleared_trace_is_empty() -> None:
    trace = HostTrace()
    with trace.span("old"):
        pass
    trace.clear()
    assert (trace.spans, trace.counts) == ([], [])


def test_times_are_microseconds() -> None:
    event = Span("x", start_us=1.5, duration_us=2.5, thread=3).event()
    assert (event["ph"], event["ts"], event["dur"], event["tid"]) == ("X", 1.5, 2.5, 3)


def test_a_trace_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write the trace"):
        HostTrace().write(tmp_path / "nowhere" / "trace.json")


def test_nothing_is_recorded_by_default() -> None:
    llm = LLM(tiny_engine(), SPECULATION)
    assert isinstance(llm.recorder, NoRecorder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_nvtx_needs_cuda() -> None:
    with pytest.raises(InputError, match="nvtx: expected a CUDA device"):
        NvtxRanges()


def test_nvtx_ranges_nest(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", calls.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: calls.append("pop"))
    ranges = NvtxRanges()
    with ranges.span("step"), ranges.span("schedule"):
        calls.append("work")
    assert calls == ["step", "schedule", "work", "pop", "pop"]
