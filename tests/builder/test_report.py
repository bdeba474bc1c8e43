from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from sparsespec.builder.errors import InputError
from sparsespec.builder.report import Machine, Metric, Report, RequestReport, Timing, this_machine

MACHINE = Machine("Linux", "3.11", "2.13", "chip", 2)


def test_json_holds_everything() -> None:
    request = RequestReport(3, 2, "hé", "stop", (Metric("accepted", 1.5, "tokens"),))
    report = Report(
        "run",
        "0.1",
        MACHINE,
        {"path": Path("a/b")},
        (Timing("load", 0.5),),
        (Metric("rate", 2, "tokens/s"),),
        (request,),
    )
    assert json.loads(report.to_json()) == {
        "schema": "sparsespec.report/1",
        "tool": "run",
        "version": "0.1",
        "machine": {"platform": "Linux", "python": "3.11", "torch": "2.13", "device": "chip", "cpu_count": 2},
        "config": {"path": "a/b"},
        "timings": [{"name": "load", "seconds": 0.5}],
        "metrics": [{"name": "rate", "value": 2, "unit": "tokens/s"}],
        "requests": [
            {
                "prompt_tokens": 3,
                "output_tokens": 2,
                "text": "hé",
                "finish_reason": "stop",
                "metrics": [{"name": "accepted", "value": 1.5, "unit": "tokens"}],
            }
        ],
    }


def test_a_number_that_is_not_finite_is_refused() -> None:
    report = Report("run", "0.1", MACHINE, {}, metrics=(Metric("rate", float("nan"), "1/s"),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.to_json()


def test_written_file_is_the_json(tmp_path: Path) -> None:
    report = Report("run", "0.1", MACHINE, {})
    report.write(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(report.to_json())
    with pytest.raises(InputError, match="cannot write the report"):
        report.write(tmp_path)


def test_this_machine() -> None:
    machine = this_machine("cpu")
    assert (machine.torch, machine.cpu_count) == (torch.__version__, os.cpu_count())
    assert machine.device
