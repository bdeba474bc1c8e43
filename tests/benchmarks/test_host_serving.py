"""The benchmark of serving's host work, at tiny sizes: that both ways step and stream, and that its numbers add up."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from host_load import Load, trained_language
from host_serving import HostServingConfig, ServingCost, main, measure
from serving_study.host_pace import Pace, Reading, Stretch, measure_offline
from serving_study.host_server import measured_server
from serving_study.raw_streams import pace_under_load

DEVICE_S = 0.02  # far more than the host's work on so few requests
LOAD = replace(HostServingConfig(k=3, output_tokens=4000).load(4), step_s=DEVICE_S)
STRETCH = Stretch(settle_s=0.2, measure_s=0.6)


def test_both_ways_make_the_devices_steps_and_their_tokens() -> None:
    cost = measure(trained_language(), LOAD, STRETCH)
    for pace in (cost.offline, cost.served):
        assert pace.period_s >= DEVICE_S
        assert pace.cpu_s > 0
        # Four requests, each of which gains one to four tokens in four steps; text may come a few steps late.
        assert 0.5 <= pace.tokens_per_second * pace.period_s <= 6


def test_a_pace_is_of_what_lies_between_two_readings() -> None:
    before = Reading(num_steps=100, num_tokens=1000, wall_s=50.0, cpu_s=7.0)
    after = Reading(num_steps=300, num_tokens=1800, wall_s=52.0, cpu_s=7.5)
    assert after.pace_since(before) == Pace(period_s=0.01, cpu_s=0.0025, tokens_per_second=400)
    with pytest.raises(ValueError, match=r"expected steps, found none within 0.0 s"):
        before.pace_since(before)


def test_requests_that_end_too_early_are_told() -> None:
    short = replace(LOAD, output_tokens=(20, 20))
    with pytest.raises(RuntimeError, match="expected 4 requests to the end, found 0"):
        measure_offline(trained_language(), short, STRETCH)


def test_streams_that_end_too_early_are_told() -> None:
    short = replace(LOAD, output_tokens=(100, 100))  # some two seconds
    with (
        measured_server(short, Stretch(settle_s=60, measure_s=60)) as server,
        pytest.raises(RuntimeError, match="a stream ended before it was measured"),
    ):
        asyncio.run(pace_under_load(server, short))


def test_a_refused_stream_is_told() -> None:
    long = replace(LOAD, prompt_tokens=(4081, 4081))  # than the server's engine takes
    with (
        measured_server(LOAD, STRETCH) as server,
        pytest.raises(RuntimeError, match=r"expected an answer of status 200, found b'HTTP/1\.1 400"),
    ):
        asyncio.run(pace_under_load(server, long))


def test_the_report_holds_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made_up(_language: object, load: Load, stretch: Stretch) -> ServingCost:
        assert (load.step_s, stretch) == (0.007, Stretch(1.0, 2.0))
        return ServingCost(load.num_requests, Pace(0.008, 0.001, 3000.0), Pace(0.010, 0.004, 2400.0))

    monkeypatch.setattr("host_serving.measure", made_up)
    path = tmp_path / "host.json"
    flags = ["--streams", "3", "5", "--device_ms", "7", "--settle_s", "1", "--measure_s", "2", "--json", str(path)]
    assert main(flags) == 0
    lines = capsys.readouterr().out.splitlines()[3:]
    assert [line.split() for line in lines] == [
        [number, "8.00", "1.00", "10.00", "4.00", "3000", "2400", "0.800"] for number in "35"
    ]
    report = json.loads(path.read_text())
    assert (report["tool"], report["config"]["HostServingConfig"]["device_ms"]) == ("host_serving", 7.0)
    found = {metric["name"]: metric["value"] for metric in report["metrics"]}
    assert len(found) == 2 * 7
    assert found["served_5_period"] == 10.0
    assert found["offline_3_throughput"] == 3000.0
    assert found["throughput_ratio_3"] == 0.8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--streams", "0"], "streams must be at least 1, found 0"),
        (["--device_ms", "0"], "device_ms must be in (0, 1000], found 0.0"),
        (["--measure_s", "-1"], "measure_s must be in (0, 1000], found -1.0"),
        (["--acceptance", "1.5"], "acceptance must be in [0, 1], found 1.5"),
        (["--k", "0"], "k must be at least 1, found 0"),
        (["--json", "/nowhere/host.json"], "/nowhere/host.json: cannot write the report"),
    ],
)
def test_bad_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 2
    assert message in capsys.readouterr().err
