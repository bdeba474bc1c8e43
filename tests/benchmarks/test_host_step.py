"""The benchmark of host work, at tiny sizes: that it runs real requests, and that its numbers add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from host_load import FullHouse, HostOnlyLLM, Language, Load, trained_language
from host_step import WAYS, HostCost, StepCost, main, measure
from sparsespec.runtime.tracing import HostTrace

TINY = ["--prompt_tokens", "20", "60", "--output_tokens", "30", "90", "--chunk_size", "64", "--k", "3"]


@pytest.fixture(scope="module")
def language() -> Language:
    return trained_language()


def tiny_load(way: str = "unified", num_requests: int = 4) -> Load:
    return Load(
        num_requests=num_requests,
        policy="lockstep" if way == "lockstep" else "unified",
        k=0 if way == "plain" else 3,
        acceptance=0.8,
        prompt_tokens=(20, 60),
        output_tokens=(30, 90),
        chunk_size=64,
    )


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_the_given_text(language: Language, way: str) -> None:
    """The device's tokens go the whole way: through scheduler, answers and tokenizer, without loss."""
    load = tiny_load(way)
    llm = HostOnlyLLM(language, load, HostTrace())
    house = FullHouse(llm, load)
    ended = 0
    while ended < 6:
        deltas = house.step()
        for output in (llm.take_output(each.request_id) for each in deltas if each.finish_reason is not None):
            (answer,) = output.outputs
            assert answer.finish_reason == "length"
            assert 30 <= len(answer.token_ids) <= 90
            assert answer.text == language.codec.decode(answer.token_ids)
            doubled = language.text + language.text[:90]
            assert _is_stretch(answer.token_ids, doubled)
            ended += 1
        if not llm.has_requests:
            house = FullHouse(llm, load)


def _is_stretch(tokens: tuple[int, ...], text: tuple[int, ...]) -> bool:
    starts = (place for place, token in enumerate(text) if token == tokens[0])
    return any(text[start : start + len(tokens)] == tokens for start in starts)


@pytest.mark.parametrize("way", WAYS)
def test_counts_are_those_of_full_steps(language: Language, way: str) -> None:
    cost = measure(language, way, tiny_load(way), num_steps=40)
    typical = cost.typical
    times = (typical.schedule, typical.prepare, typical.results, typical.update, typical.loop)
    assert typical.step == pytest.approx(sum(times))
    assert min(*times, typical.text) > 0
    assert 0 < typical.drafts + typical.verifications <= 4
    assert (typical.drafts == 0) == (way == "plain")
    assert typical.verifications <= typical.tokens <= 4 * typical.verifications + 4


def test_the_typical_cycle_is_one_of_the_cycles() -> None:
    """Cycles of k + 1 = 4 steps, of which the middle one in time counts; an incomplete one does not."""
    times = (1.0, 3.0, 5.0, 7.0, 100.0, 100.0, 100.0, 100.0, 8.0, 8.0, 8.0, 12.0, 1.0)
    steps = [StepCost(time, 2 * time, 3 * time, 4 * time, 5 * time, 0.0, 3.0, 1.0, 2.0) for time in times]
    cost = HostCost.of("unified", tiny_load(), steps)
    assert cost.typical == StepCost(9.0, 18.0, 27.0, 36.0, 45.0, 0.0, 3.0, 1.0, 2.0)
    assert cost.slow_step == 1500.0


def test_the_report_holds_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "host.json"
    flags = ["--requests", "1", "2", "--ways", "unified", "plain", "--num_steps", "8", "--json", str(path)]
    assert main([*TINY, *flags]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [tuple(line.split()[:2]) for line in lines] == [
        (way, number) for way in ("unified", "plain") for number in "12"
    ]
    report = json.loads(path.read_text())
    assert (report["tool"], report["machine"]["cpu_count"] >= 1) == ("host_step", True)
    assert report["config"]["HostStepConfig"]["k"] == 3
    found = {metric["name"]: metric["value"] for metric in report["metrics"]}
    assert len(found) == 4 * 11
    assert f"{found['plain_2_step']:.0f}" == lines[3].split()[7]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ways", "sideways"], "ways: expected some of unified, lockstep, plain, found 'sideways'"),
        (["--prompt_tokens", "9", "3"], "prompt_tokens must be two numbers"),
        (["--output_tokens", "9"], "output_tokens must be two numbers"),
        (["--acceptance", "1.5"], r"acceptance must be in \[0, 1\], found 1.5"),
        (["--num_steps", "3"], "num_steps"),
        (["--requests", "0"], "requests"),
    ],
)
def test_bad_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 2
    assert message.replace("\\", "") in capsys.readouterr().err
