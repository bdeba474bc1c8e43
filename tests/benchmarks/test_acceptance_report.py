from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from acceptance_report import main, read_merged
from acceptance_study.observations import Cell, Observation, write_observations
from acceptance_study.tables import Table, best_rule, study_tables
from made_observations import make_cell, see, see_study, see_texts
from sparsespec.builder.errors import InputError

MEANS = {"paper": 3.0, "recent50": 3.5, "lookups": 3.02, "default": 3.4, "ngram": 0.5, "oracle": 6.0}
KB = 1024


def branch_cells() -> list[Cell]:
    """As acceptance.py measures: the default and ngram once, all others at both budgets."""
    return [
        replace(make_cell(rule, ratio, context, temperature), min_budget=192 if rule == "default" else 1)
        for rule in MEANS
        for ratio in ((0.05,) if rule in ("default", "ngram") else (0.05, 0.1))
        for context in (1024, 4096)
        for temperature in (0.0, 0.6)
    ]


def loop_cells() -> list[Cell]:
    return [replace(cell, study="loops") for cell in branch_cells() if cell.context == 1024 and cell.ratio == 0.05]


def confirming(cells: list[Cell]) -> list[Cell]:
    return [replace(cell, half="confirm") for cell in cells]


@pytest.fixture(scope="module")
def branches() -> list[Observation]:
    return see_study(branch_cells(), MEANS)


@pytest.fixture(scope="module")
def loops() -> list[Observation]:
    return see_study(loop_cells(), MEANS)


@pytest.fixture(scope="module")
def tables(branches: list[Observation], loops: list[Observation]) -> dict[str, Table]:
    kept = see_study(confirming(branch_cells() + loop_cells()), MEANS)
    found = study_tables([*branches, *loops, *kept], ("default", "recent50"), ("paper",))
    return {table.title: table for table in found}


def row_of(table: Table, start: str) -> tuple[str, ...]:
    (found,) = [row for row in table.rows if row[0] == start]
    return found


def value(text: str) -> float:
    return float(text.strip("*").split()[0].strip("*"))


def test_every_part_of_the_study_has_its_table(tables: dict[str, Table]) -> None:
    assert list(tables) == [
        "Branches, 5% of the context",
        "Branches, 5% of the context, by context",
        "Branches, 10% of the context",
        "Branches, 10% of the context, by context",
        "Loops, 5% of the context",
        "Kinds of text, 5% of the context",
        "Kinds of text, 10% of the context",
        "Confirmation",
    ]
    assert all(len(row) == len(table.header) for table in tables.values() for row in table.rows)


def test_branches_are_compared_with_the_papers_rule(tables: dict[str, Table]) -> None:
    table = tables["Branches, 5% of the context"]
    assert table.header == ("rule", "positions", "greedy", "vs paper", "T=0.6", "vs paper")
    paper, recent = row_of(table, "paper"), row_of(table, "recent50")
    assert table.rows[0] == paper
    assert (paper[3], paper[5]) == ("-", "-")
    assert recent[1] == str(2 * 2 * 2 * 12)  # halves, contexts, positions, texts
    assert value(recent[3]) == pytest.approx(0.5, abs=0.06)
    assert value(recent[3]) == pytest.approx(value(recent[2]) - value(paper[2]), abs=0.011)
    assert re.fullmatch(r"\*\*\+0\.\d\d\*\* \[\+0\.\d\d, \+0\.\d\d\]", recent[3])
    assert "**" not in row_of(table, "lookups")[3]
    assert row_of(table, "ngram")[3].startswith("**-2.")


def test_the_default_is_a_row_of_its_own_where_it_was_measured(tables: dict[str, Table]) -> None:
    name = "default, at least 192 tokens"
    assert value(row_of(tables["Branches, 5% of the context"], name)[3]) == pytest.approx(0.4, abs=0.06)
    assert name not in [row[0] for row in tables["Branches, 10% of the context"].rows]


def test_contexts_have_columns(branches: list[Observation]) -> None:
    longer = [replace(one, num_accepted=one.num_accepted + 4) if one.cell.context == 4096 else one for one in branches]
    plain, moved = (study_tables(seen, (), ())[1] for seen in (branches, longer))
    assert plain.header == ("rule", "greedy, 1k", "greedy, 4k", "T=0.6, 1k", "T=0.6, 4k")
    before, after = row_of(plain, "paper"), row_of(moved, "paper")
    assert after[1] == before[1]
    assert float(after[2]) == pytest.approx(float(before[2]) + 1.0, abs=0.011)


def test_loops_are_shown_with_and_without_repetition(tables: dict[str, Table]) -> None:
    table = tables["Loops, 5% of the context"]
    assert table.header[2:-1:2] == ("greedy, all", "greedy, fresh", "T=0.6, all", "T=0.6, fresh")
    for row in table.rows:
        assert value(row[4]) == pytest.approx(value(row[2]) + 1.0, abs=0.011)


def test_loops_of_several_contexts_have_columns(loops: list[Observation]) -> None:
    longer = [
        replace(one, cell=replace(one.cell, context=4096), fresh_accepted=one.fresh_accepted + 2.0) for one in loops
    ]
    found = {table.title: table for table in study_tables([*loops, *longer], (), ())}
    assert list(found) == [
        "Loops, 5% of the context",
        "Loops, 5% of the context, by context",
        "Loops, 5% of the context, outside repetitive stretches, by context",
    ]
    whole, fresh = (row_of(table, "paper") for table in list(found.values())[1:])
    assert float(fresh[1]) == pytest.approx(float(whole[1]) + 1.0, abs=0.011)
    assert float(fresh[2]) == pytest.approx(float(whole[1]) + 3.0, abs=0.011)


def test_greedy_answers_that_equal_plain_decodings_are_counted(loops: list[Observation]) -> None:
    def compared(one: Observation) -> Observation:
        differs = (one.cell.rule, one.text, one.position) == ("recent50", "text 3", 1)
        return replace(one, equals_plain=None if one.cell.temperature else not differs)

    (table,) = study_tables([compared(one) for one in loops], (), ())
    assert table.header[-1] == "answers equal to plain"
    assert row_of(table, "paper")[-1] == "24 of 24"
    assert row_of(table, "recent50")[-1] == "23 of 24"
    assert row_of(study_tables(loops, (), ())[0], "paper")[-1] == "-"


def test_kinds_of_text_show_the_paper_the_best_and_the_oracle(tables: dict[str, Table]) -> None:
    table = tables["Kinds of text, 10% of the context"]
    assert table.header == ("rule", "licences", "reference")
    assert [row[0] for row in table.rows if "branches, greedy" in row[0]] == [
        "paper: branches, greedy",
        "recent50: branches, greedy",
        "oracle: branches, greedy",
    ]


def test_a_kind_of_text_counts_its_own_observations_only() -> None:
    cells = [make_cell("paper"), make_cell("recent50")]
    seen = [see(cell, text, 2.0, source="licences") for cell in cells for text in "ab"]
    seen += [see(cell, text, 5.0, source="reference") for cell in cells for text in "ab"]
    _, table = study_tables(seen, (), ())
    assert row_of(table, "paper: branches, greedy")[1:] == ("2.00 [2.00, 2.00]", "5.00 [5.00, 5.00]")


def test_the_best_rule_is_one_that_can_be_had(branches: list[Observation]) -> None:
    assert best_rule(branches, 0.05) == "recent50"
    assert best_rule([], 0.05) is None


def test_confirmation_is_on_its_half_and_corrected(tables: dict[str, Table]) -> None:
    table = tables["Confirmation"]
    pairs = [row[0] for row in table.rows]
    # recent50 at two budgets, the default at one, twice for two temperatures; in loops both at one budget.
    assert len(pairs) == 2 * (2 + 1) + 2 * 2
    assert dict.fromkeys(pairs) == dict.fromkeys(["default, at least 192 tokens vs paper", "recent50 vs paper"])
    assert "10 comparisons: each interval is at 99.50%" in table.note
    assert [row[2] for row in table.rows] == ["48"] * 6 + ["24"] * 4
    assert "loops, greedy, fresh, 5% of the context" in [row[1] for row in table.rows]


def test_confirmation_needs_observations_of_its_half(branches: list[Observation]) -> None:
    with pytest.raises(InputError, match="half confirm for recent50, found none"):
        study_tables(branches, ("recent50",), ("paper",))


@pytest.mark.parametrize(("candidates", "baselines"), [(("recent5",), ("paper",)), (("recent50",), ("recent5",))])
def test_a_rule_that_was_not_measured_is_named(
    branches: list[Observation], candidates: tuple[str, ...], baselines: tuple[str, ...]
) -> None:
    with pytest.raises(InputError, match=r"expected some of paper, recent50, .*found 'recent5'"):
        study_tables(branches, candidates, baselines)


def test_a_rule_of_one_half_is_compared_there() -> None:
    paper, recent = make_cell("paper"), make_cell("recent50")
    kept = [replace(one, num_accepted=32.0) for one in see_texts(replace(paper, half="confirm"), 3.0)]
    table = study_tables([*see_texts(paper, 3.0), *kept, *see_texts(recent, 3.5)], (), ())[0]
    assert (row_of(table, "paper")[1], row_of(table, "recent50")[1]) == ("48", "24")
    assert value(row_of(table, "recent50")[3]) == pytest.approx(0.5, abs=0.1)


def test_a_table_is_markdown() -> None:
    table = Table("Title", "A note.", ("rule", "greedy"), (("paper", "3.00"),))
    lines = ["### Title", "", "A note.", "", "| rule | greedy |", "| --- | ---: |", "| paper | 3.00 |"]
    assert table.markdown() == "\n".join(lines)


def test_files_are_merged(tmp_path: Path, branches: list[Observation], loops: list[Observation]) -> None:
    write_observations(tmp_path / "branches.json", {"dtype": "float32"}, branches)
    write_observations(tmp_path / "loops.json", {"dtype": "float64"}, loops)
    setups, merged = read_merged([tmp_path / "branches.json", tmp_path / "loops.json"])
    assert merged == [*branches, *loops]
    assert setups == {"branches.json": {"dtype": "float32"}, "loops.json": {"dtype": "float64"}}


def test_a_cell_of_two_files_is_refused(
    tmp_path: Path, branches: list[Observation], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    write_observations(first, {}, branches)
    write_observations(second, {}, [one for one in branches if one.cell.rule == "oracle"])
    assert main([str(first), str(second)]) == 2
    error = capsys.readouterr().err
    assert f"error: {second}: expected cells that no other file has" in error
    assert "rule='oracle'" in error
    assert str(first) in error


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"setup": {}, "cells": [{"observations": []}]}'])
def test_a_file_that_is_not_a_result_is_named(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert main([str(path)]) == 2
    assert f"error: {path}: expected results of acceptance.py" in capsys.readouterr().err


def test_what_is_printed_is_what_is_written(
    tmp_path: Path, loops: list[Observation], capsys: pytest.CaptureFixture[str]
) -> None:
    write_observations(tmp_path / "loops.json", {"dtype": "float32"}, loops)
    assert main([str(tmp_path / "loops.json"), "--output", str(tmp_path / "tables.md")]) == 0
    written = (tmp_path / "tables.md").read_text()
    assert capsys.readouterr().out == written
    assert "### Loops, 5% of the context" in written
    assert 'loops.json\n{"dtype": "float32"}' in written
    assert not list(tmp_path.glob("*.png"))


def test_given_baselines_take_the_place_of_the_paper(
    tmp_path: Path, loops: list[Observation], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [replace(one, cell=replace(one.cell, half="confirm")) for one in loops]
    write_observations(tmp_path / "loops.json", {}, kept)
    assert main([str(tmp_path / "loops.json"), "--candidates", "default", "--baselines", "recent50"]) == 0
    printed = capsys.readouterr().out
    assert "default, at least 192 tokens vs recent50" in printed
    assert "default, at least 192 tokens vs paper" not in printed


def test_pictures_are_drawn_and_small(
    tmp_path: Path, branches: list[Observation], loops: list[Observation], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    write_observations(tmp_path / "all.json", {}, [*branches, *loops])
    assert main([str(tmp_path / "all.json"), "--plots", str(tmp_path / "plots")]) == 0
    for name in ("acceptance_branches.png", "acceptance_rules.png"):
        picture = (tmp_path / "plots" / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert 10 * KB < len(picture) < 150 * KB
    assert "Branches" in capsys.readouterr().out


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
def test_one_text_and_one_context_can_be_drawn(tmp_path: Path) -> None:
    """What a quick run on a CPU measures; its intervals have no ends."""
    pytest.importorskip("matplotlib")
    from acceptance_study.plots import plot_branches, plot_rules

    seen = [see(make_cell(rule), "a", MEANS[rule]) for rule in ("paper", "recent50")]
    plot_branches(seen, tmp_path / "branches.png", ())
    plot_rules(seen, tmp_path / "rules.png")
    assert (tmp_path / "branches.png").stat().st_size > 10 * KB
    assert (tmp_path / "rules.png").stat().st_size > 5 * KB


def test_missing_matplotlib_is_told_in_a_line(
    tmp_path: Path, loops: list[Observation], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("acceptance_report.find_spec", lambda _: None)
    write_observations(tmp_path / "loops.json", {}, loops)
    assert main([str(tmp_path / "loops.json"), "--plots", str(tmp_path)]) == 2
    assert "error: plots: expected matplotlib, found none" in capsys.readouterr().err
