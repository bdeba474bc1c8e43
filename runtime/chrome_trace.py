"""Chrome's trace-event JSON, which chrome://tracing and ui.perfetto.dev read. Times in microseconds. No torch.

Complete events of one thread nest or follow each other; what overlaps otherwise, Perfetto drops.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from sparsespec.builder.errors import InputError

Event = dict[str, object]


def complete_event(name: str, process: int, thread: int, start: float, duration: float) -> Event:
    """Something that took its time."""
    return {"name": name, "ph": "X", "pid": process, "tid": thread, "ts": start, "dur": duration}


def counter_event(name: str, process: int, at: float, values: Mapping[str, float]) -> Event:
    """Values of one unit, which share a chart."""
    return {"name": name, "ph": "C", "pid": process, "ts": at, "args": dict(values)}


def process_name(process: int, name: str, place: int) -> list[Event]:
    """place: among the processes, from the top."""
    at = {"ph": "M", "pid": process, "tid": 0}
    return [
        {"name": "process_name", "args": {"name": name}, **at},
        {"name": "process_sort_index", "args": {"sort_index": place}, **at},
    ]


def thread_name(process: int, thread: int, name: str) -> Event:
    """Of a row of complete events."""
    return {"name": "thread_name", "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def write_trace(path: Path, events: Iterable[Event]) -> None:
    """Raises InputError when path cannot be written."""
    try:
        path.write_text(json.dumps({"traceEvents": list(events), "displayTimeUnit": "ms"}) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot write the trace: {error}") from error
