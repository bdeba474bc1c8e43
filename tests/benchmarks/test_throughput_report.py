"""Stored results become tables and pictures; every figure in them comes from the file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from sparsespec.builder.errors import InputError
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.gpu_timeline import Timeline
from throughput_report import main, report
from throughput_study.cases import PLAIN, Measured
from throughput_study.growth import GrowthRun, Reading
from throughput_study.latency import Arrivals, LatencyRun
from throughput_study.settings import Result
from throughput_study.stored import SCHEMA, StoredRun, read_run
from throughput_study.windows import Window

FAST = SpeculationConfig()
TIMELINE = Timeline(9, 10.0, {"attention": 7.5, "gemm": 2.0}, 314.0, 0.05, 0.2)


def measured(label: str, seconds: float, batch: int = 96) -> Measured:
    """900 tokens in 90 steps."""
    speculation = PLAIN if label.endswith(("plain", "none")) else FAST
    window = Window(batch, 90, 900 * batch, seconds, 8000.0)
    return Measured(label, speculation, window, TIMELINE, 7, 12_000_000, (window,) if label == "agreement" else ())


def grown(label: str, scale: float, temperature: float) -> GrowthRun:
    """An adaptive one chooses k from the context."""
    chosen = [f"k {step}" if label == "adaptive" else "" for step in range(14)]
    readings = tuple(Reading(2000.0 + 500 * step, 1000 * step, scale * step, chosen[step]) for step in range(14))
    return GrowthRun(label, FAST, temperature, readings, 100, 1.0, 6.5, 5.5, 0.25)


_ADAPTIVE = measured("64 adaptive", 2.0, 64)
CHOSEN = dataclasses.replace(_ADAPTIVE, window=dataclasses.replace(_ADAPTIVE.window, chosen="plain"))
ARRIVALS = Arrivals(100, 12.0, 34.0, 6.5, 2.5)
RESULTS: dict[str, tuple[Result, ...]] = {
    "forced": (dataclasses.replace(measured("plain", 2.0), predicted_step_ms=20.0), measured("agreement", 1.0)),
    "shapes": tuple(
        measured(f"{shape} {name}", seconds)
        for shape in ("512 x 4160", "256 x 7160")
        for name, seconds in (("plain", 3.0), ("speculative", 1.0))
    ),
    "growth": tuple(
        grown(label, scale, temperature)
        for temperature in (0.0, 0.6)
        for label, scale in (("plain", 1.0), ("adaptive", 0.2), ("speculative", 0.4))
    ),
    "sweep_k": (measured("none", 4.0), measured("k 4", 2.0), measured("k 8", 1.0)),
    "sweep_batch": (measured("1 none", 1.0, 1), measured("1 pillar", 0.8, 1), measured("64 none", 1.0, 64), CHOSEN),
    "fresh": tuple(
        measured(f"{context} {name}", seconds)
        for context, plain in ((2500, 4.0), (8000, 8.0))
        for name, seconds in (("none", plain), ("agreement 6.44", 2.0))
    ),
    "latency": (LatencyRun("plain", PLAIN, 32, 4100.0, 1024, ARRIVALS, ARRIVALS, 32768, (900.0, 950.0)),),
}


def write(directory: Path, experiment: str) -> Path:
    """As throughput.py does."""
    results = [{"kind": type(each).__name__, **dataclasses.asdict(each)} for each in RESULTS[experiment]]
    path = directory / f"throughput_{experiment}.json"
    machine = {"device": "NVIDIA Something"}
    document = {
        "schema": SCHEMA,
        "experiment": experiment,
        "command": "python x",
        "machine": machine,
        "results": results,
        "commit": "0123abc",
    }
    path.write_text(json.dumps({**document, "results": results}))
    return path


@pytest.mark.parametrize("experiment", RESULTS)
def test_what_is_stored_is_read_as_it_was(experiment: str, tmp_path: Path) -> None:
    run = read_run(write(tmp_path, experiment))
    assert run == StoredRun(experiment, "python x", "NVIDIA Something", RESULTS[experiment], "0123abc")


def test_tables(tmp_path: Path) -> None:
    text = report({name: read_run(write(tmp_path, name)) for name in RESULTS})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert ["plain", "8000", "22.22", "960.0", "43200", "1.00x", "14.58x"] in rows
    assert ["agreement", "8000", "11.11", "960.0", "86400", "2.00x", "29.16x"] in rows
    assert ["512 x 4160 speculative", "8000", "11.11", "960.0", "86400", "3.00x", "2.49x"] in rows
    assert ["over plain", *["2.50x"] * 7, "", ""] in rows
    assert [row[1:7] for row in rows if row[0] == "as chosen"] == [["k 2", "k 4", "k 6", "k 8", "k 10", "k 12"]] * 2
    assert ["64 adaptive (plain)", "8000", "22.22", "640.0", "28800", "0.50x"] in rows
    assert ["k 8", "8000", "11.11", "960.0", "86400", "4.00x"] in rows
    assert ["1 pillar", "8000", "8.89", "10.0", "1125", "1.25x"] in rows
    assert ["1024", "plain, steady", "12.0", "34.0", "6.5", "2.50", ""] in rows
    assert ["2500 agreement 6.44", "8000", "22.22", "960.0", "43200", "2.00x"] in rows
    assert ["8000 agreement 6.44", "8000", "22.22", "960.0", "43200", "4.00x"] in rows
    assert ["plain", "20.00", "22.22", "90%"] in rows
    assert "0.050 (0.5%)" in text
    assert "on one NVIDIA Something, commit 0123abc." in text


def test_files_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(write(tmp_path, name)) for name in RESULTS]
    assert main([*paths, "--output", str(tmp_path / "tables.md"), "--plots", str(tmp_path)]) == 0
    assert (tmp_path / "tables.md").read_text() == capsys.readouterr().out
    for name in ("steps", "growth", "sweeps"):
        assert (tmp_path / f"performance_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="expected a result of throughput"):
        read_run(path)
    path.write_text("{")
    with pytest.raises(InputError, match="cannot read"):
        read_run(path)
