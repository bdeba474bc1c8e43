"""What was measured, in pictures. The only file of the study that needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from throughput_study.cases import Measured
from throughput_study.growth import GrowthRun
from throughput_study.stored import StoredRun
from throughput_study.tables import KIND_NAMES, is_plain

# Okabe and Ito's, for every kind of colour vision.
_COLOURS = {
    "attention": "#0072B2",
    "gemm": "#E69F00",
    "select": "#CC79A7",
    "sampling": "#009E73",
    "other": "#56B4E9",
    "idle": "#B8B8B8",
}
_LINES = ("#000000", "#D55E00", "#0072B2", "#009E73")
# SparseSpec's table of Qwen3-8B on an H100 (arXiv 2512.01278): milliseconds of a step; CPU time is the GPU's idle time.
PAPER_STEPS: Mapping[str, Mapping[str, float]] = {
    "paper, plain\nH100": {"attention": 17.1, "gemm": 7.2, "idle": 3.2},
    "paper, speculative\nH100": {"attention": 5.2, "gemm": 8.9, "idle": 0.5},
}


def plot_all(runs: Mapping[str, StoredRun], directory: Path) -> list[Path]:
    """The pictures that these experiments make; returns their paths."""
    drawn = []
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        if "forced" in runs and "shapes" in runs:
            drawn.append(_save(_steps_figure(runs["forced"], runs["shapes"]), directory / "performance_steps.png"))
        grown = [each for name in ("growth", "growth_sampled") if name in runs for each in runs[name].grown]
        if grown:
            drawn.append(_save(_growth_figure(grown), directory / "performance_growth.png"))
        sweeps = [name for name in _SWEEPS if name in runs]
        if sweeps:
            drawn.append(_save(_sweeps_figure([runs[name] for name in sweeps]), directory / "performance_sweeps.png"))
    return drawn


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    return path


def _steps_figure(forced: StoredRun, shapes: StoredRun) -> Figure:
    """Where a step's time goes. What overlaps is taken off attention, so that bars are as long as steps."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(4, 4))
    _stacked(left, {**{f"B, {each.label}": _parts(each) for each in forced.measured}, **PAPER_STEPS})
    _stacked(right, {each.label.replace(" x ", "x").replace(" ", "\n"): _parts(each) for each in shapes.measured})
    left.set_ylabel("ms a step")
    left.legend(frameon=False)
    return figure


def _parts(measured: Measured) -> dict[str, float]:
    timeline = measured.timeline
    assert timeline is not None
    idle = timeline.between_graphs_ms + timeline.inside_graphs_ms
    parts = {kind: timeline.by_kind.get(kind, 0.0) for kind in KIND_NAMES}
    parts["attention"] -= sum(parts.values()) + idle - timeline.step_ms
    return {**parts, "idle": idle}


def _stacked(axes: Axes, bars: Mapping[str, Mapping[str, float]]) -> None:
    bottoms = dict.fromkeys(bars, 0.0)
    for kind, colour in _COLOURS.items():
        heights = [parts.get(kind, 0.0) for parts in bars.values()]
        axes.bar(list(bars), heights, 0.65, bottom=list(bottoms.values()), color=colour, label=kind)
        bottoms = {name: bottoms[name] + height for name, height in zip(bars, heights, strict=True)}
    for place, total in enumerate(bottoms.values()):
        axes.annotate(f"{total:.1f}", (place, total), ha="center", va="bottom")
    axes.tick_params(axis="x", labelsize=7)


def _growth_figure(runs: Sequence[GrowthRun]) -> Figure:
    temperatures = sorted({each.temperature for each in runs})
    figure = Figure(figsize=(4.6 * len(temperatures), 3.2), layout="constrained")
    panels = figure.subplots(1, len(temperatures), sharey=True, squeeze=False)[0]
    for axes, temperature in zip(panels, temperatures, strict=True):
        own = [each for each in runs if each.temperature == temperature]
        for each, colour in zip(own, _LINES, strict=False):
            pairs = list(zip(each.readings, each.readings[1:], strict=False))
            rates = [(b.num_tokens - a.num_tokens) / (b.seconds - a.seconds) for a, b in pairs]
            axes.plot([b.context for _, b in pairs], rates, marker="o", markersize=3, color=colour, label=each.label)
        axes.set_title(f"temperature {temperature}")
        axes.set_xlabel("mean context, tokens")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("tokens/s")
    panels[-1].legend(frameon=False)
    panels[0].legend(frameon=False)
    return figure


def _sweeps_figure(runs: Sequence[StoredRun]) -> Figure:
    figure = Figure(figsize=(3.4 * len(runs), 3.0), layout="constrained")
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        label, name_of = _SWEEPS[run.experiment]
        for adaptive, name, colour in ((False, "as set", _LINES[2]), (True, "adaptive", _LINES[1])):
            ratios = {name_of(each): ratio for each, ratio in _over_plain(run) if each.speculation.adaptive == adaptive}
            if ratios:
                axes.plot(list(ratios), list(ratios.values()), marker="o", color=colour, label=name)
        axes.axhline(1, color="#B8B8B8", linewidth=0.8)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("tokens/s over plain")
        axes.legend(frameon=False)
    return figure


def _over_plain(run: StoredRun) -> list[tuple[Measured, float]]:
    """What is not plain, over the plain decoding before it."""
    plain, ratios = run.measured[0], []
    for each in run.measured:
        if is_plain(each):
            plain = each
        else:
            ratios.append((each, each.speedup_over(plain)))
    return ratios


# The factor of each sweep, and how one of its values is told.
_SWEEPS: Mapping[str, tuple[str, Callable[[Measured], str]]] = {
    "sweep_k": ("drafts per cycle", lambda each: f"{each.speculation.k}"),
    "sweep_ratio": ("ratio", lambda each: f"{each.speculation.ratio}"),
    "sweep_batch": ("requests", lambda each: f"{each.window.num_requests}"),
    "sweep_context": ("context at constant KV (B)", lambda each: f"{round(each.window.context / 1024)}k"),
}
