"""The study itself, on an engine of random weights and texts of a few lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import acceptance
import acceptance_report
from acceptance_study.branches import expected_accepted, prefill
from acceptance_study.observations import Observation, read_observations
from acceptance_study.rules import rule
from acceptance_study.texts import Text
from sparsespec.builder.build_config import BuildConfig
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.llm import LLM
from tiny_llm import greedy, random_prompts, tiny_engine
from tiny_models import tiny_model_config, write_tiny_engine

BUILD = BuildConfig(
    dtype="float64", max_batch_size=4, max_seq_len=128, max_num_tokens=64, max_draft_len=8, max_budget=128, page_size=16
)
K = 8
# One rule for every way to rank, to move and to draft.
KINDS = (
    "paper",
    "accepted",
    "average",
    "moving last lookups",
    "recent50 moving lookups",
    "recent25 moving lookups",
    "window",
    "ngram",
    "oracle",
)
SPECULATIONS = {name: rule(name, ratio=0.5, min_budget=1) for name in KINDS}
SPECULATIONS["by drafts"] = replace(SPECULATIONS["recent25 moving lookups"], score_normalizer="draft")
CONTEXT = 40
WORDS = ("with the other thing ", "that path is there ", "three of them think ", "both of the authors ")
# Of each source one that has room for two positions, one for a single position, and one that is too short.
TEXTS = [
    Text(source, f"{source} {number}", WORDS[number] * repeats)
    for source in ("reference", "licences")
    for number, repeats in enumerate((8, 3, 1))
]
POSITIONS = ((0, 0), (0, 1), (1, 0))


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_engine(tmp_path_factory.mktemp("engine") / "engine", tiny_model_config(), BUILD, seed=5)


class Study:
    """Runs the command line."""

    def __init__(self, engine_dir: Path) -> None:
        self._engine_dir = engine_dir

    def call(self, output: Path, *flags: str) -> int:
        """Its exit code."""
        common = ("--engine_dir", str(self._engine_dir), "--output", str(output), "--device", "cpu")
        return acceptance.main([*common, "--contexts", str(CONTEXT), *flags])


@pytest.fixture
def study(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(acceptance, "collect_texts", lambda *_: TEXTS)
    return Study(engine_dir)


def rules_of(observations: Sequence[Observation]) -> list[str]:
    return list(dict.fromkeys(seen.cell.rule for seen in observations))


def positions_of(observations: Sequence[Observation], name: str) -> list[tuple[str, int, str]]:
    """Each once: they are the same for every temperature."""
    found = {(seen.text, seen.position, seen.cell.half): None for seen in observations if seen.cell.rule == name}
    return sorted(found)


def test_branches_and_loops_become_one_report(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    branches, loops = tmp_path / "branches.json", tmp_path / "loops.json"
    rules = ("paper", "average", "ngram")
    shipped = ("default", "default exact")
    assert study.call(branches, "--rules", *shipped, *rules, "--num_cycles", "2", "--ratios", "0.3") == 0
    flags = ("--study", "loops", "--num_tokens", "20", "--ratios", "0.3")
    assert study.call(loops, "--rules", *rules, *flags) == 0

    setup, drafted = read_observations(branches)
    assert str(tmp_path) not in json.dumps(setup)
    assert rules_of(drafted) == [*shipped, *rules]
    halves = {"reference": ("tune", "confirm"), "licences": ("confirm", "tune")}
    places = [(f"{source} {number}", at, halves[source][number]) for source in halves for number, at in POSITIONS]
    assert positions_of(drafted, "paper") == sorted(places)
    assert all(0 <= seen.num_accepted <= seen.num_cycles * K for seen in drafted)
    answered = read_observations(loops)[1]
    assert all(0 <= seen.fresh_accepted <= seen.num_accepted for seen in answered)
    assert all(seen.equals_plain is (True if seen.cell.temperature == 0 else None) for seen in answered)

    assert acceptance_report.main([str(branches), str(loops), "--candidates", "average"]) == 0
    printed = capsys.readouterr().out
    assert "### Branches, 30% of the context" in printed
    assert "### Loops, 30% of the context" in printed
    assert printed.count("| 6 of 6 |") == len(rules)
    assert "### Confirmation" in printed


@pytest.mark.parametrize("speculation", SPECULATIONS.values(), ids=list(SPECULATIONS))
def test_a_greedy_branch_accepts_what_the_loop_accepts(speculation: SpeculationConfig) -> None:
    """From the same prompt both see the same drafts."""
    num_cycles, model = 3, tiny_model_config(vocab_size=12)
    engine, prompts = tiny_engine(5, BUILD, model), random_prompts((CONTEXT,) * 3, model.vocab_size)
    outputs = LLM(engine, speculation).generate(prompts, greedy((num_cycles + 1) * (K + 1)))
    accepted = [sum(block.num_accepted for block in output.outputs[0].verifications[:num_cycles]) for output in outputs]
    assert 0 < sum(accepted) < 3 * num_cycles * K
    branches = prefill(engine, prompts, num_cycles)
    assert expected_accepted(branches, speculation, 0.0, num_cycles) == accepted
    assert expected_accepted(branches, speculation, 0.0, num_cycles) == accepted  # every run goes on from the prompts


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--rules", "paper", "best"), "rules: expected some of default, default exact, paper,"),
        (("--contexts", "4"), "contexts must be at least 16, found 4"),
        (("--contexts", "4000"), "contexts: found no text of 4000 tokens"),
        (("--num_cycles", "0"), "num_cycles must be at least 1, found 0"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert study.call(tmp_path / "none.json", *flags) == 2
    assert f"error: {message}" in capsys.readouterr().err
