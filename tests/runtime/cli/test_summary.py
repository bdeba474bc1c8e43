from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from sparsespec.builder.report import Metric
from sparsespec.runtime.cli.decode_batch import Speed
from sparsespec.runtime.cli.run_result import RunResult
from sparsespec.runtime.cli.summary import Acceptance, KvReads, summarize, summary_metrics
from sparsespec.runtime.cli.summary_table import summary_table
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.cost_model import DraftReads, Way
from sparsespec.runtime.outputs import CompletionOutput, RequestOutput
from sparsespec.runtime.verification import Verification

SPECULATION = SpeculationConfig(k=2, ratio=0.1, min_budget=6)


def request(prompt_len: int, *answers: CompletionOutput) -> RequestOutput:
    return RequestOutput(0, None, tuple(range(prompt_len)), answers)


def answer(token_ids: tuple[int, ...], *blocks: Verification) -> CompletionOutput:
    return CompletionOutput(0, "", token_ids, (), "length", None, blocks)


# After 100 prompt tokens, drafts that read 10 + 11 tokens, a verification of everything, and 3 or 1 new tokens.
LONG = Verification(1, 3, num_drafts=2, num_accepted=2, draft_kv_tokens=21, verify_kv_tokens=103, context=100)
NEXT = Verification(4, 1, num_drafts=2, num_accepted=0, draft_kv_tokens=25, verify_kv_tokens=106, context=103)
# After 40 prompt tokens the smallest budget counts.
SHORT = Verification(1, 2, num_drafts=2, num_accepted=1, draft_kv_tokens=14, verify_kv_tokens=43, context=40)


def test_counts_of_two_requests() -> None:
    outputs = [request(100, answer((1, 2, 3, 4, 5), LONG, NEXT)), request(40, answer((1, 2, 3), SHORT))]
    summary = summarize(outputs, SPECULATION, kv_bytes_per_token=10)
    assert (summary.prompt_tokens, summary.new_tokens, summary.finish_reasons) == (140, 8, ("length", "length"))
    assert (summary.draft_len, summary.acceptance, summary.outside_repetition) == (
        2,
        Acceptance((1, 1, 1), num_drafts=6),
        Acceptance((1, 1, 1), num_drafts=6),
    )
    reads = summary.draft_reads
    assert reads is not None
    assert (reads.context, reads.budget, reads.last) == ((103 + 40) / 2, (10 + 6) / 2, (25 / 2 + 14 / 2) / 2)
    assert reads.mean == 60 / 6
    assert reads.share == 60 / (2 * (100 + 103 + 40))
    kv = summary.kv_reads
    assert kv is not None
    assert kv.speculative == pytest.approx(10 * (21 + 103 + 25 + 106 + 14 + 43) / 6)
    assert kv.plain == pytest.approx(10 * (306 + 104 + 83) / 6)
    assert kv.ratio == pytest.approx(312 / 493)


def test_a_prompt_counts_once_for_all_its_answers() -> None:
    summary = summarize([request(40, answer((1, 2), SHORT), answer((3,)))], SPECULATION, 10)
    assert (summary.prompt_tokens, summary.new_tokens) == (40, 3)


def test_repetition_is_left_out_of_the_second_mean() -> None:
    tokens = (9, *range(8), *range(8))
    blocks = (Verification(1, 8, 2, 1, 20, 60, 40), Verification(16, 1, 2, 2, 20, 68, 64))
    summary = summarize([request(40, answer(tokens, *blocks))], SPECULATION, 10)
    assert (summary.acceptance.mean, summary.outside_repetition.mean) == (1.5, 1.0)
    values = {metric.name: metric.value for metric in summary_metrics(summary)}
    assert values["verifications"] == 2
    assert values["verifications_repetitive"] == 1
    assert values["drafts_per_verification"] == 2


def test_metrics_leave_out_what_cannot_be_measured() -> None:
    unverified = summarize([request(4, answer((1,)))], SPECULATION, 10)
    assert (unverified.draft_reads, unverified.kv_reads, unverified.acceptance.mean) == (None, None, None)
    assert summary_metrics(unverified) == (
        Metric("prompt_tokens", 4, "tokens"),
        Metric("new_tokens", 1, "tokens"),
        Metric("verifications", 0, "count"),
        Metric("verifications_repetitive", 0, "count"),
        Metric("verifications_accepting_0", 0, "count"),
        Metric("verifications_accepting_1", 0, "count"),
        Metric("verifications_accepting_2", 0, "count"),
    )


# Drafts from the text cost no step; the first time nothing was found, then one draft, then both, of which one held.
NOT_FOUND = Verification(1, 1, num_drafts=0, num_accepted=0, draft_kv_tokens=0, verify_kv_tokens=43, context=40)
ONE_FOUND = Verification(2, 2, num_drafts=1, num_accepted=1, draft_kv_tokens=0, verify_kv_tokens=44, context=41)
BOTH_FOUND = Verification(4, 2, num_drafts=2, num_accepted=1, draft_kv_tokens=0, verify_kv_tokens=46, context=43)
FOUND_IN_THE_TEXT = request(40, answer(tuple(range(6)), NOT_FOUND, ONE_FOUND, BOTH_FOUND))
NGRAM = SpeculationConfig(drafter="ngram", k=2)


def test_drafts_found_in_the_text() -> None:
    summary = summarize([FOUND_IN_THE_TEXT], NGRAM, 10)
    assert (summary.acceptance, summary.draft_reads) == (Acceptance((1, 2, 0), num_drafts=3), None)
    assert (summary.acceptance.mean, summary.acceptance.mean_drafts) == (2 / 3, 1)
    assert summary.kv_reads == KvReads(speculative=10 * (43 + 44 + 46) / 5, plain=10 * (41 + 85 + 89) / 5)
    values = {metric.name: metric.value for metric in summary_metrics(summary)}
    assert (values["drafts_per_verification"], values["accepted_per_verification"]) == (1, 2 / 3)
    assert [name for name in values if name.startswith("draft_")] == []


def test_drafts_never_found() -> None:
    summary = summarize([request(40, answer((1, 2), NOT_FOUND))], NGRAM, 10)
    assert (summary.acceptance.mean, summary.acceptance.mean_drafts, summary.draft_reads) == (0, 0, None)


def test_what_an_oracle_reads_to_choose_is_not_told_as_its_choice() -> None:
    summary = summarize([request(100, answer((1, 2, 3, 4, 5), LONG, NEXT))], replace(SPECULATION, drafter="oracle"), 10)
    assert summary.draft_reads is not None
    assert summary.kv_reads is None
    assert [metric.name for metric in summary_metrics(summary) if metric.name.startswith("kv_")] == []


def printed(output: RequestOutput, speculation: SpeculationConfig, chosen: Way | None = None) -> list[str]:
    summary = summarize([output], speculation, 10)
    result = RunResult((1,), (output,), summary, 0.5, Speed(0.25, 0.5, 5), plain=None, chosen=chosen)
    console = Console(width=120, record=True, file=StringIO())
    console.print(summary_table(result, speculation))
    return [" ".join(line.split()) for line in console.export_text().splitlines()]


def test_table_of_drafts_found_in_the_text() -> None:
    lines = printed(FOUND_IN_THE_TEXT, NGRAM)
    assert "verifications 3 up to 2 drafts before each" in lines
    assert "accepted drafts 0.67 of 1 per verification, mean" in lines
    assert "verifications by accepted drafts" in lines
    assert [line for line in lines if line.startswith(("draft budget ", "draft reads "))] == []
    assert [line for line in lines if line.startswith("KV cache read ")] != []


def test_table_of_an_adaptive_run() -> None:
    way = Way("lockstep", 7, DraftReads(0.025, 64))
    lines = printed(FOUND_IN_THE_TEXT, NGRAM, way)
    assert "chosen lockstep, k 7, ratio 0.025 by adaptive, for the last steps" in lines
    lines = printed(FOUND_IN_THE_TEXT, NGRAM, replace(way, num_drafts=0))
    assert "chosen plain by adaptive, for the last steps" in lines
    assert [line for line in printed(FOUND_IN_THE_TEXT, NGRAM) if line.startswith("chosen ")] == []


def test_table_of_drafts_by_the_model() -> None:
    lines = printed(request(100, answer((1, 2, 3, 4, 5), LONG, NEXT)), SPECULATION)
    assert "verifications 2 2 drafts before each" in lines
    assert "accepted drafts 1.00 of 2 per verification, mean" in lines
    assert "draft budget 10 tokens 9.7% of 103 at the end: max(6, 0.1 * context)" in lines


def test_table_of_an_answer_without_verifications() -> None:
    assert "verifications by accepted drafts" not in printed(request(4, answer((1,))), SPECULATION)


def test_without_a_drafter_nothing_is_drafted_and_the_cache_is_read_once() -> None:
    block = Verification(1, 1, num_drafts=0, num_accepted=0, draft_kv_tokens=0, verify_kv_tokens=41, context=40)
    summary = summarize([request(40, answer((1, 2), block))], SpeculationConfig(drafter="none"), 10)
    assert (summary.draft_len, summary.draft_reads) == (0, None)
    assert summary.kv_reads is not None
    assert summary.kv_reads.ratio == 1
