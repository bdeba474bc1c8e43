"""The closing summary of run.py, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sparsespec.runtime.cli.repetition import NGRAM
from sparsespec.runtime.cli.run_result import PlainComparison, RunResult
from sparsespec.runtime.cli.summary import Acceptance, DraftReads, KvReads, Summary
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.cost_model import Way

FOOTNOTE = (
    f"repetitive: at least half of the verification's new tokens end a sequence of {NGRAM} tokens that came earlier in "
    "the same answer. draft budget and reads: per layer and KV head. KV cache read: by drafts and verifications, per "
    "new token, without the prefill."
)
_BAR_WIDTH = 40


@dataclass(frozen=True)
class Row:
    """A number of a table."""

    name: str
    value: str
    note: str = ""


def summary_table(result: RunResult, speculation: SpeculationConfig) -> RenderableType:
    """A table of everything measured, the histogram of accepted drafts and a footnote."""
    drafts = _draft_rows(result.summary, speculation)
    rows = [*_token_rows(result), *_choice_rows(result.chosen), *drafts, *_comparison_rows(result)]
    table = rows_table("summary", rows)
    if not result.summary.has_drafts:
        return table
    histogram = _histogram(result.summary.acceptance)
    return Group(table, "", "verifications by accepted drafts", histogram, "", Text(FOOTNOTE, style="dim"))


def rows_table(title: str, rows: Sequence[Row]) -> Table:
    """Names, numbers and notes under each other."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for row in rows:
        table.add_row(row.name, row.value, row.note)
    return table


def _token_rows(result: RunResult) -> list[Row]:
    summary, speed = result.summary, result.speed
    rate = speed.tokens_per_second
    return [
        Row("prompt tokens", f"{summary.prompt_tokens:,}", _several(len(result.outputs), "prompts")),
        Row("new tokens", f"{summary.new_tokens:,}", _finish(summary)),
        Row("load", f"{result.load_seconds:.2f} s"),
        Row("prefill", f"{speed.prefill_seconds:.2f} s", "time to the first token"),
        Row("decode", f"{speed.decode_seconds:.2f} s", f"{rate:.1f} tokens/s" if rate else ""),
    ]


def _choice_rows(chosen: Way | None) -> list[Row]:
    return [] if chosen is None else [Row("chosen", chosen.summary(), "by adaptive, for the last steps")]


def _draft_rows(summary: Summary, speculation: SpeculationConfig) -> list[Row]:
    if not summary.has_drafts:
        return []
    reads = _read_rows(summary.draft_reads, speculation) if summary.draft_reads else []
    return [*_acceptance_rows(summary), *reads, *_kv_rows(summary.kv_reads)]


def _acceptance_rows(summary: Summary) -> list[Row]:
    total, outside = summary.acceptance.num_verifications, summary.outside_repetition
    fewer = summary.acceptance.num_drafts < total * summary.draft_len
    return [
        Row("verifications", f"{total:,}", f"{'up to ' if fewer else ''}{summary.draft_len} drafts before each"),
        Row("accepted drafts", _mean(summary.acceptance), "per verification, mean"),
        Row(
            "  not repetitive",
            _mean(outside),
            f"the same over {outside.num_verifications:,} of {total:,} verifications",
        ),
    ]


def _read_rows(reads: DraftReads, speculation: SpeculationConfig) -> list[Row]:
    share = reads.budget / reads.context
    rule = f"max({speculation.min_budget}, {speculation.ratio:g} * context)"
    return [
        Row("draft budget", f"{reads.budget:,.0f} tokens", f"{share:.1%} of {reads.context:,.0f} at the end: {rule}"),
        Row(
            "draft reads",
            f"{reads.mean:,.1f} tokens",
            f"{reads.share:.1%} of context, mean per draft; {reads.last:,.1f} at the end",
        ),
    ]


def _kv_rows(reads: KvReads | None) -> list[Row]:
    if reads is None:
        return []
    note = f"{reads.ratio:.3f} of plain decoding's {_megabytes(reads.plain)} per token"
    return [Row("KV cache read", _megabytes(reads.speculative), note)]


def _comparison_rows(result: RunResult) -> list[Row]:
    plain = result.plain
    if plain is None:
        return []
    rate, ratio = plain.speed.tokens_per_second, result.speed_ratio
    faster = f"{rate:.1f} tokens/s; speculation: {ratio:.2f}x that speed" if rate and ratio else ""
    return [
        Row("plain decoding", "equal" if plain.num_differing == 0 else "DIFFERENT", _equality(plain)),
        Row("  decode", f"{plain.speed.decode_seconds:.2f} s", faster),
    ]


def _equality(plain: PlainComparison) -> str:
    differing = [(number, place) for number, place in enumerate(plain.first_differences, start=1) if place is not None]
    if not differing:
        return "token for token"
    answers = ", ".join(f"answer {number} from token {place}" for number, place in differing)
    why = "; 16-bit rounding may do this" if plain.is_16_bit else ""
    return f"{len(differing)} of {len(plain.first_differences)} answers: {answers} (counted from 0){why}"


def _histogram(acceptance: Acceptance) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right")
    grid.add_column(width=_BAR_WIDTH)
    grid.add_column(justify="right")
    for number, count in enumerate(acceptance.counts):
        grid.add_row(str(number), Bar(max(acceptance.counts), 0, count, width=_BAR_WIDTH), f"{count:,}")
    return Padding(grid, (0, 0, 0, 2))


def _finish(summary: Summary) -> str:
    counts = Counter(summary.finish_reasons)
    if len(counts) == 1:
        return f"finish reason: {summary.finish_reasons[0]}"
    return "finish reasons: " + ", ".join(f"{count} {reason}" for reason, count in counts.items())


def _mean(acceptance: Acceptance) -> str:
    mean, drafts = acceptance.mean, acceptance.mean_drafts
    return "none" if mean is None else f"{mean:.2f} of {drafts:.3g}"


def _several(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number > 1 else ""


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.2f} MB"
