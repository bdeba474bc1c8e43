"""`sparsespec doctor`: every probe answers, what is printed and written, and the real command."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from sparsespec.runtime.doctor import command, examine
from sparsespec.runtime.doctor.examine import PROBES, Probe, answer
from sparsespec.runtime.doctor.findings import Finding, State, Subject, cost_of, found, missing, unsuitable
from sparsespec.runtime.doctor.report import likely_backend, render

SUBJECTS: tuple[Subject, ...] = get_args(Subject)


def test_every_subject_has_a_probe_and_a_cost() -> None:
    assert tuple(probe.subject for probe in PROBES) == SUBJECTS
    assert all(cost_of(subject) for subject in SUBJECTS)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("first\nsecond"), "looking for it failed: ValueError: first"),
        (SystemExit(3), "looking for it failed: SystemExit: 3"),
        (KeyError(), "looking for it failed: KeyError: no reason given"),
    ],
)
def test_a_probe_that_fails(error: BaseException, text: str) -> None:
    def look() -> Finding:
        raise error

    assert answer(Probe("MPI", look), 60) == unsuitable("MPI", text)


def test_a_probe_that_never_answers() -> None:
    def look() -> Finding:
        time.sleep(60)
        return found("MPI")

    assert answer(Probe("MPI", look), 0.05) == unsuitable("MPI", "no answer within 0.05 s")


def states(**others: State) -> list[Finding]:
    """All found, but for those given by subject, with _ for a space."""
    given: dict[str, State] = {subject.replace("_", " "): state for subject, state in others.items()}
    return [Finding(subject, given.get(subject, "found"), (), "something") for subject in SUBJECTS]


@pytest.mark.parametrize(
    ("findings", "name", "reason"),
    [
        (states(), "tensorrt", "runs on torch, with the plugins"),
        (states(MPI="missing", CUDA_toolkit="missing"), "tensorrt", "runs on torch, with the plugins"),
        (states(TensorRT="missing"), "torch", "on the GPU with the plugins: TensorRT is missing"),
        (states(TensorRT="missing", plugin_host="missing"), "torch", "which stops unless"),
        (states(plugin_library="unsuitable"), "torch", "is given: plugin library unsuitable"),
        (states(GPUs="unsuitable"), "torch", "no GPU is served by the plugins"),
        (states(GPUs="missing", plugin_library="missing"), "torch", "on the CPU with the reference ops"),
        (states(PyTorch="missing", GPUs="missing"), "torch", "which stops: PyTorch is missing"),
    ],
)
def test_the_backend_of_auto(findings: list[Finding], name: str, reason: str) -> None:
    backend = likely_backend(findings)
    assert backend.name == name
    assert reason in backend.reason


def test_what_is_printed_fits_and_says_what_is_missing() -> None:
    console = Console(width=96, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(render([missing(subject, "[red]why[/red] " * 20, "/long" * 40) for subject in SUBJECTS]))
    lines = captured.get().splitlines()
    assert max(len(line) for line in lines) <= 96
    joined = "".join(line.strip() for line in lines)
    assert joined.count("costs: ") == len(SUBJECTS)
    assert joined.count("/long") >= 39 * len(SUBJECTS)
    assert "[red]why" in joined


def only(monkeypatch: pytest.MonkeyPatch, state: Callable[[Subject], Finding]) -> None:
    probes = tuple(Probe(subject, lambda subject=subject: state(subject)) for subject in SUBJECTS)  # type: ignore[misc]
    monkeypatch.setattr(examine, "PROBES", probes)


def test_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only(monkeypatch, lambda subject: missing(subject, "why"))
    path = tmp_path / "doctor.json"
    assert command.main(["--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document["schema"] == "sparsespec.doctor/1"
    assert document["findings"][1] == {
        "subject": "PyTorch",
        "state": "missing",
        "details": ["why"],
        "cost": cost_of("PyTorch"),
    }
    assert document["backend"] == {"name": "torch", "reason": "which stops: PyTorch is missing"}
    assert capsys.readouterr().out.rstrip().endswith("which stops: PyTorch is missing.")


def test_json_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--json", str(tmp_path / "absent" / "doctor.json")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")


def test_nothing_that_fails_is_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(subject: Subject) -> Finding:
        raise RuntimeError(f"{subject} is broken")

    only(monkeypatch, fail)
    assert command.main([]) == 0
    output = capsys.readouterr()
    assert "Traceback" not in output.out + output.err
    assert output.out.count("unsuitable  looking for it failed: RuntimeError: ") == len(SUBJECTS)


def test_on_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "doctor.json"
    done = subprocess.run(
        [sys.executable, "-m", "sparsespec.runtime.main", "doctor", "--json", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in SUBJECTS if f"\n{line} " not in done.stdout] == []
    assert "Traceback" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 96
    findings = json.loads(path.read_text())["findings"]
    assert all(finding["cost"] for finding in findings if finding["state"] != "found")
    assert f"--backend auto takes {json.loads(path.read_text())['backend']['name']} " in done.stdout
