"""What was measured, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.gpu_timeline import OTHER, Timeline
from throughput_study.cases import Measured
from throughput_study.growth import GrowthRun
from throughput_study.latency import Arrivals
from throughput_study.settings import PAPER_AGREEMENT
from throughput_study.stored import StoredRun
from throughput_study.timeline import KINDS
from throughput_study.windows import Window

# vLLM 0.25.1's plain decoding on an H200, another machine of the kind and another run: tokens a second.
VLLM_TOKENS = {"96 x 8192": 2963, "512 x 4160": 34672, "256 x 7160": 20821}
KIND_NAMES = (*(kind for kind, _ in KINDS), OTHER)
_CONTEXTS = (3000, 4000, 5000, 6000, 7000, 8000)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text, the others are numbers."""
    ruler = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, ruler, *rows))


def forced_tables(run: StoredRun) -> str:
    """Plain and speculative, then every agreement of the same run."""
    plain, fast = run.measured
    windows = [(f"{PAPER_AGREEMENT}", fast.window), *((_agreement(each, fast.speculation), each) for each in fast.more)]
    curve = [
        [name, f"{window.step_ms:.2f}", f"{window.tokens_per_second:.0f}", _times(window.tokens_per_second, plain)]
        for name, window in windows
    ]
    return "\n\n".join(
        [
            _speeds(run.measured, {plain.label: plain, fast.label: plain}, VLLM_TOKENS["96 x 8192"]),
            table(["accepted of 8", "ms a step", "tokens/s", "over plain"], curve),
            table(["ms a step", "predicted", "measured", "of the predicted speed"], _predictions(run.measured)),
            _timelines(run.measured),
        ]
    )


def _predictions(measured: Sequence[Measured]) -> list[list[str]]:
    """Of those that have one."""
    return [
        [each.label, f"{told:.2f}", f"{each.window.step_ms:.2f}", f"{told / each.window.step_ms:.0%}"]
        for each in measured
        if (told := each.predicted_step_ms) is not None
    ]


def shapes_tables(run: StoredRun) -> str:
    """Each shape's speculative run beside its own plain one, and beside vLLM's plain decoding."""
    parts = []
    for shape in ("512 x 4160", "256 x 7160"):
        own = [each for each in run.measured if each.label.startswith(shape)]
        parts.append(_speeds(own, {each.label: own[0] for each in own}, VLLM_TOKENS[shape]))
    return "\n\n".join([*parts, _timelines(run.measured)])


def growth_tables(run: StoredRun) -> str:
    """Tokens a second by context, and over the whole of the requests' lives."""
    columns = [
        "",
        *(f"at {context // 1000}k" for context in _CONTEXTS),
        "whole run",
        "accepted",
        "outside repetition",
    ]
    rows = []
    for temperature in sorted({each.temperature for each in run.grown}):
        plain, *others = [each for each in run.grown if each.temperature == temperature]
        rows.append([_growth_name(plain), *(f"{rate:.0f}" for rate in _rates(plain)), "", ""])
        for other in others:
            ratios = [mine / theirs for mine, theirs in zip(_rates(other), _rates(plain), strict=True)]
            accepted = [f"{other.accepted:.2f}", f"{other.accepted_fresh:.2f} ({other.fresh_share:.0%})"]
            rows.append([_growth_name(other), *(f"{rate:.0f}" for rate in _rates(other)), *accepted])
            rows.append(["over plain", *(f"{ratio:.2f}x" for ratio in ratios), "", ""])
            if other.chosen_at(_CONTEXTS[0]):
                rows.append(["as chosen", *(other.chosen_at(context) for context in _CONTEXTS), "", "", ""])
    return table(columns, rows)


def side_by_side_table(run: StoredRun) -> str:
    """Everything over the plain decoding that was measured last before it, of the same requests."""
    own: dict[str, Measured] = {}
    plain = run.measured[0]
    for each in run.measured:
        plain = each if is_plain(each) else plain
        own[each.label] = plain
    return _speeds(run.measured, own, None)


def is_plain(measured: Measured) -> bool:
    """Whether others are told as ratios to it."""
    return measured.label.endswith(("none", "plain"))


def latency_table(run: StoredRun) -> str:
    """Milliseconds between arrivals, steady and while prompts join."""
    columns = ["chunks of prompts", "", "p50", "p99", "tokens at once", "ms a token", "first token, ms"]
    rows = []
    for each in run.latencies:
        first = " and ".join(f"{taken:.0f}" for taken in each.first_token_ms)
        size = f"{each.chunk_size}"
        rows.append([size, f"{each.label}, steady", *_arrivals(each.steady), ""])
        rows.append(
            [size, f"{each.label}, while prompts of {each.prompt_len} join", *_arrivals(each.beside_prompts), first]
        )
    return table(columns, rows)


TABLES: Mapping[str, tuple[str, Callable[[StoredRun], str]]] = {
    "forced": ("B: Qwen3-8B's geometry, agreement forced", forced_tables),
    "shapes": ("A: SmolLM2-135M at the shapes that vLLM was measured at", shapes_tables),
    "growth": ("A: 512 requests from 2k to 8k", growth_tables),
    "growth_sampled": ("A: the same, sampled", growth_tables),
    "fresh": ("A: as if no request repeated itself, agreement forced", side_by_side_table),
    "drafters": ("A: drafters", side_by_side_table),
    "sweep_k": ("A: drafts per cycle", side_by_side_table),
    "sweep_ratio": ("A: share of the cache that drafts read", side_by_side_table),
    "sweep_batch": ("A: requests that decode together", side_by_side_table),
    "policies": ("A: verifications spread or together", side_by_side_table),
    "sampling": ("A: sampled, by what lets drafts stand", side_by_side_table),
    "wishes": ("A: what requests may want beside tokens", side_by_side_table),
    "sweep_context": ("B: contexts at a constant number of tokens in all, agreement forced", side_by_side_table),
    "peer": ("A: whole answers, prompts included", side_by_side_table),
    "latency": ("B: when tokens arrive", latency_table),
}


def _speeds(measured: Sequence[Measured], plain_of: Mapping[str, Measured], vllm: int | None) -> str:
    columns = [
        "",
        "context",
        "ms a step",
        "tokens a step",
        "tokens/s",
        "over plain",
        *(["over vLLM's plain"] if vllm else []),
    ]
    rows = []
    for each in measured:
        window = each.window
        row = [
            f"{each.label} ({window.chosen})" if window.chosen else each.label,
            f"{window.context:.0f}",
            f"{window.step_ms:.2f}",
            f"{window.num_tokens / window.num_steps:.1f}",
        ]
        row += [f"{window.tokens_per_second:.0f}", _times(window.tokens_per_second, plain_of[each.label])]
        rows.append(row + ([f"{window.tokens_per_second / vllm:.2f}x"] if vllm else []))
    return table(columns, rows)


def _timelines(measured: Sequence[Measured]) -> str:
    columns = ["ms a step", *KIND_NAMES, "idle between graphs", "idle inside", "kernels", "graphs", "their MB"]
    rows = [
        [each.label, *_timeline_cells(each.timeline), f"{each.num_graphs}", f"{each.graph_bytes / 1e6:.0f}"]
        for each in measured
        if each.timeline is not None
    ]
    return table(columns, rows)


def _timeline_cells(timeline: Timeline) -> list[str]:
    kinds = [f"{timeline.by_kind.get(kind, 0.0):.2f}" for kind in KIND_NAMES]
    between = f"{timeline.between_graphs_ms:.3f} ({timeline.idle_between_share:.1%})"
    return [*kinds, between, f"{timeline.inside_graphs_ms:.3f}", f"{timeline.kernels_per_step:.0f}"]


def _rates(run: GrowthRun) -> list[float]:
    return [*(run.rate_at(context) for context in _CONTEXTS), run.tokens_per_second]


def _growth_name(run: GrowthRun) -> str:
    return f"{run.label}, temperature {run.temperature}"


def _agreement(window: Window, speculation: SpeculationConfig) -> str:
    """Read off the window itself: tokens of a verification less the one that is not a draft."""
    num_verifications = window.num_steps * window.num_requests / (speculation.num_draft_steps + 1)
    return f"{window.num_tokens / num_verifications - 1:.2f}"


def _times(tokens_per_second: float, plain: Measured) -> str:
    return f"{tokens_per_second / plain.window.tokens_per_second:.2f}x"


def _arrivals(arrivals: Arrivals) -> list[str]:
    return [f"{arrivals.p50_ms:.1f}", f"{arrivals.p99_ms:.1f}", f"{arrivals.tokens:.1f}", f"{arrivals.token_ms:.2f}"]
