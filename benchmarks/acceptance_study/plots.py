"""The study in two pictures. The only file that needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from acceptance_study.observations import Observation, Study
from acceptance_study.rules import DEFAULT, NGRAM, ORACLE, PAPER, SHIPPED, WINDOW
from acceptance_study.statistics import Estimate, Measure, by_rule, estimate_mean
from acceptance_study.tables import best_rule, context_name, contexts, difference_to, measures, ratios

# Okabe and Ito's, for every kind of colour vision; their yellow is too light for lines.
_COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_OTHERS = "#B8B8B8"
_BOUNDS = (ORACLE, NGRAM)  # so far from the others that these could not be told apart
_UNIT = "accepted drafts per cycle"


def plot_branches(observations: Sequence[Observation], path: Path, candidates: Sequence[str]) -> None:
    """Accepted drafts against context: a panel for each budget and temperature."""
    rows = [measures(observations, "branches", ratio) for ratio in ratios(observations, "branches")]
    named = _named_rules(observations, candidates)
    with _style():
        figure = Figure(figsize=(4.2 * len(rows[0]), 3.1 * len(rows) + 0.7), layout="constrained")
        panels = figure.subplots(len(rows), len(rows[0]), sharex=True, sharey=True, squeeze=False)
        for measure, axes in zip((one for row in rows for one in row), panels.flat, strict=True):
            _draw_contexts(axes, observations, measure, named)
        for axes in panels[-1]:
            axes.set_xlabel("context (tokens)")
        for axes in panels[:, 0]:
            axes.set_ylabel(f"{_UNIT} (of {SHIPPED.k})")
        found = [axes.get_legend_handles_labels() for axes in panels.flat]
        handles = {label: line for lines, labels in found for line, label in zip(lines, labels, strict=True)}
        order = [label for label in [*named, "other rules"] if label in handles]
        lines = [handles[label] for label in order]
        figure.legend(
            lines,
            order,
            loc="outside lower center",
            ncols=2 * len(rows[0]),
            frameon=False,
            title="bands are 95% intervals",
        )
        _save(figure, path)


def plot_rules(observations: Sequence[Observation], path: Path) -> None:
    """Differences to the paper's rule: a row of panels for each budget, branches and loops side by side."""
    studies: list[Study] = [study for study in ("branches", "loops") if ratios(observations, study)]
    budgets = sorted({at: None for study in studies for at in ratios(observations, study)})
    rules = {ratio: _compared_rules(observations, studies, ratio) for ratio in budgets}
    with _style():
        heights = [0.8 + 0.28 * len(rules[ratio]) for ratio in budgets]
        figure = Figure(figsize=(2.2 + 3.6 * len(studies), sum(heights) + 1.1), layout="constrained")
        panels = figure.subplots(
            len(budgets), len(studies), sharex=True, sharey="row", squeeze=False, height_ratios=heights
        )
        for ratio, row in zip(budgets, panels, strict=True):
            for study, axes in zip(studies, row, strict=True):
                _draw_bars(
                    axes, observations, measures(observations, study, ratio, fresh=study == "loops"), rules[ratio]
                )
        for axes in panels[-1]:
            axes.set_xlabel(f"{_UNIT}, difference to {PAPER}")
        bars, labels = panels[0, 0].get_legend_handles_labels()
        note = f"lines are 95% intervals; without {' and '.join(_BOUNDS)}"
        figure.legend(bars, labels, loc="outside lower center", ncols=4, frameon=False, title=note)
        _save(figure, path)


def _style() -> AbstractContextManager[None]:
    return mpl.rc_context({"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False})


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=105, pil_kwargs={"optimize": True})


def _named_rules(observations: Sequence[Observation], candidates: Sequence[str]) -> dict[str, int]:
    """Rules with a colour of their own, and its number; the others are grey."""
    best = [best_rule(observations, ratio) for ratio in ratios(observations, "branches")]
    wanted = [PAPER, *candidates, DEFAULT, *(rule for rule in best if rule), ORACLE, WINDOW, NGRAM]
    labels = dict.fromkeys(
        label
        for name in wanted
        for measure in _all_measures(observations)
        for label, seen in by_rule(observations, measure).items()
        if name in (label, seen[0].cell.rule)
    )
    return {label: number for number, label in enumerate(list(labels)[: len(_COLOURS)])}


def _all_measures(observations: Sequence[Observation]) -> list[Measure]:
    return [one for ratio in ratios(observations, "branches") for one in measures(observations, "branches", ratio)]


def _draw_contexts(axes: Axes, observations: Sequence[Observation], measure: Measure, named: dict[str, int]) -> None:
    lengths = contexts([seen for seen in observations if seen.cell.study == measure.study])
    for rule, seen in by_rule(observations, measure).items():
        means = {at: estimate_mean([one for one in seen if one.cell.context == at]) for at in lengths}
        known = {at: mean for at, mean in means.items() if mean is not None}
        values = [mean.value for mean in known.values()]
        if rule not in named:
            axes.plot(list(known), values, color=_OTHERS, linewidth=0.8, zorder=1, label="other rules")
            continue
        colour, marker = _COLOURS[named[rule]], _MARKERS[named[rule]]
        axes.plot(list(known), values, color=colour, marker=marker, markersize=4, linewidth=1.5, zorder=3, label=rule)
        low, high = [mean.low for mean in known.values()], [mean.high for mean in known.values()]
        axes.fill_between(list(known), low, high, color=colour, alpha=0.12, linewidth=0, zorder=2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [context_name(at) for at in lengths])
    axes.set_ylim(0, SHIPPED.k)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axes.set_title(f"{measure.budget}, {measure.decoding}")


def _compared_rules(observations: Sequence[Observation], studies: Sequence[Study], ratio: float) -> list[str]:
    """By their difference to the paper's rule at the first measure that has them; the last one is drawn on top."""
    found: dict[str, float] = {}
    for study in studies:
        for measure in measures(observations, study, ratio, fresh=study == "loops"):
            for rule, difference in _differences(observations, measure).items():
                found.setdefault(rule, difference.value)
    return sorted(found, key=lambda rule: found[rule])


def _differences(observations: Sequence[Observation], measure: Measure) -> dict[str, Estimate]:
    rules = by_rule(observations, measure)
    found = {rule: difference_to(PAPER, rule, rules, measure) for rule in rules if rule not in _BOUNDS}
    return {rule: difference for rule, difference in found.items() if difference is not None}


def _draw_bars(
    axes: Axes, observations: Sequence[Observation], columns: Sequence[Measure], rules: Sequence[str]
) -> None:
    thickness = 0.8 / len(columns)
    for number, measure in enumerate(columns):
        differences = _differences(observations, measure)
        shown = [rule for rule in rules if rule in differences]
        bars = [differences[rule] for rule in shown]
        heights = [rules.index(rule) + 0.4 - thickness * (number + 0.5) for rule in shown]
        reach = [[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]]
        axes.barh(
            heights,
            [bar.value for bar in bars],
            thickness * 0.9,
            color=("#0072B2", "#E69F00", "#009E73", "#CC79A7")[number % 4],
            xerr=reach,
            error_kw={"linewidth": 0.9, "ecolor": "#333333"},
            label=measure.decoding,
        )
    axes.axvline(0, color="#000000", linewidth=0.8)
    axes.set_yticks(range(len(rules)), rules)
    axes.set_ylim(-0.7, len(rules) - 0.3)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    where = "loops, outside repetitive stretches" if columns[0].fresh else "branches"
    axes.set_title(f"{where}\n{columns[0].budget}")
