"""What throughput.py wrote, as values again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from sparsespec.builder.errors import InputError
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.gpu_timeline import Timeline
from throughput_study.cases import Measured
from throughput_study.growth import GrowthRun, Reading
from throughput_study.latency import Arrivals, LatencyRun
from throughput_study.settings import Result
from throughput_study.windows import Window

SCHEMA = "sparsespec.throughput/1"
ValueT = TypeVar("ValueT")

# Fields that are dataclasses, or tuples of them, of each kind of result.
_PARTS: Mapping[str, Mapping[str, type[Any]]] = {
    "Measured": {"speculation": SpeculationConfig, "window": Window, "timeline": Timeline, "more": Window},
    "GrowthRun": {"speculation": SpeculationConfig, "readings": Reading},
    "LatencyRun": {"speculation": SpeculationConfig, "steady": Arrivals, "beside_prompts": Arrivals},
}
_KINDS: Mapping[str, type[Any]] = {"Measured": Measured, "GrowthRun": GrowthRun, "LatencyRun": LatencyRun}


@dataclass(frozen=True)
class StoredRun:
    """One run of throughput.py."""

    experiment: str
    command: str
    device: str
    results: tuple[Result, ...]
    commit: str = ""  # of the sources that ran; older runs do not say

    @property
    def measured(self) -> list[Measured]:
        """Those of windows."""
        return [result for result in self.results if isinstance(result, Measured)]

    @property
    def grown(self) -> list[GrowthRun]:
        """Those of whole runs."""
        return [result for result in self.results if isinstance(result, GrowthRun)]

    @property
    def latencies(self) -> list[LatencyRun]:
        """Those of arrivals."""
        return [result for result in self.results if isinstance(result, LatencyRun)]


def read_run(path: Path) -> StoredRun:
    """InputError for a file that throughput.py did not write."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read the results: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(f"{path}: expected a result of throughput.py, schema {SCHEMA}")
    results = tuple(_result(each) for each in document["results"])
    commit = document.get("commit", "")
    return StoredRun(document["experiment"], document["command"], document["machine"]["device"], results, commit)


def _result(stored: Mapping[str, Any]) -> Result:
    kind = stored["kind"]
    parts = _PARTS[kind]
    values = {name: _part(parts.get(name), value) for name, value in stored.items() if name != "kind"}
    result: Result = _KINDS[kind](**values)
    return result


def _part(kind: type[Any] | None, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value if kind is None else [_made(kind, each) for each in value])
    return value if kind is None or value is None else _made(kind, value)


def _made(kind: type[ValueT], stored: Mapping[str, Any]) -> ValueT:
    """Without fields that a later version has dropped."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: value for name, value in stored.items() if name in known})
