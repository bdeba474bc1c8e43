"""What a run amounts to, computed from its outputs. No torch, no printing.

Metrics of a report (builder.report); one is left out where there is nothing to measure:

  prompt_tokens, new_tokens           tokens    over all requests
  verifications                       count     verified blocks; a request's first token comes from its prompt
  verifications_repetitive            count     of them, in a repetitive stretch (see repetition.py)
  verifications_accepting_0 .. _k     count     of them, by accepted drafts
  drafts_per_verification             tokens    mean number of drafts: k, or fewer where they are found in the text
  accepted_per_verification           tokens    mean number of them that were accepted
  accepted_outside_repetition         tokens    the same without repetitive stretches
  draft_context                       tokens    verified tokens before an answer's last drafts, mean over answers
  draft_budget                        tokens    max(min_budget, ratio * context) there
  draft_read_last, draft_read         tokens    read per draft step (layer and KV head), at most: last drafts, all
  draft_read_share                    ratio     draft_read to the context, over all draft steps
                                                (these five where the model drafts)
  kv_read_per_token                   bytes     KV cache read by drafts and verifications per new token, no prefill
  kv_read_per_token_plain             bytes     what plain decoding reads for the same tokens
  kv_read_ratio                       ratio     the former to the latter
                                                (these three not for drafter oracle, which reads all to choose)
  tokens_per_second                   tokens/s  after the run's first token
  tokens_per_second_plain             tokens/s  the same, decoded plainly
  speed_ratio                         ratio     the former to the latter
  answers_differing                   count     answers whose tokens differ from plain decoding
  first_difference                    index     per request: first token that differs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sparsespec.builder.report import Metric
from sparsespec.runtime.cli.repetition import repetitive_verifications
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.outputs import RequestOutput
from sparsespec.runtime.verification import Verification


@dataclass(frozen=True)
class Acceptance:
    """Verifications by the number of drafts they accepted: counts[0] .. counts[k]."""

    counts: tuple[int, ...]
    num_drafts: int  # of all verifications together; drafts found without the model may be fewer than k in each

    @staticmethod
    def of(verifications: Sequence[Verification], draft_len: int) -> Acceptance:
        """Count them."""
        accepted = [verification.num_accepted for verification in verifications]
        counts = tuple(accepted.count(number) for number in range(draft_len + 1))
        return Acceptance(counts, sum(verification.num_drafts for verification in verifications))

    @property
    def num_verifications(self) -> int:
        """How many were counted."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """Accepted drafts per verification."""
        total = sum(number * count for number, count in enumerate(self.counts))
        return total / self.num_verifications if self.num_verifications else None

    @property
    def mean_drafts(self) -> float | None:
        """Drafts per verification."""
        return self.num_drafts / self.num_verifications if self.num_verifications else None


@dataclass(frozen=True)
class DraftReads:
    """What draft steps read, in tokens per layer and KV head; the first three are means over the answers."""

    context: float  # verified tokens before the last drafts
    budget: float  # max(min_budget, ratio * context)
    last: float  # per step of the last drafts; the block's own drafts come on top of the budget
    mean: float  # per step of all drafts
    share: float  # of the context, over all drafts


@dataclass(frozen=True)
class KvReads:
    """Bytes of KV cache read per new token, over all layers, without prefill."""

    speculative: float
    plain: float

    @property
    def ratio(self) -> float:
        """Speculative to plain."""
        return self.speculative / self.plain


@dataclass(frozen=True)
class Summary:
    """Counts over the answers of one or more requests."""

    prompt_tokens: int
    new_tokens: int
    finish_reasons: tuple[str, ...]  # one per answer
    acceptance: Acceptance
    outside_repetition: Acceptance
    draft_reads: DraftReads | None  # None where the model drafted nothing
    kv_reads: KvReads | None  # None where nothing was verified; and for an oracle, which reads all to choose

    @property
    def draft_len(self) -> int:
        """Most drafts of a verification, k."""
        return len(self.acceptance.counts) - 1

    @property
    def has_drafts(self) -> bool:
        """Whether there were verifications with room for drafts."""
        return self.draft_len > 0 and self.acceptance.num_verifications > 0


def summarize(outputs: Sequence[RequestOutput], speculation: SpeculationConfig, kv_bytes_per_token: int) -> Summary:
    """Summarize requests that ran with `speculation`; a token keeps kv_bytes_per_token in the cache."""
    answers = [answer for output in outputs for answer in output.outputs]
    blocks = [block for answer in answers for block in answer.verifications]
    repetitive = [flag for answer in answers for flag in repetitive_verifications(answer)]
    fresh = [block for block, repeats in zip(blocks, repetitive, strict=True) if not repeats]
    last_blocks = [answer.verifications[-1] for answer in answers if answer.verifications]
    return Summary(
        prompt_tokens=sum(len(output.prompt_token_ids) for output in outputs),
        new_tokens=sum(len(answer.token_ids) for answer in answers),
        finish_reasons=tuple(str(answer.finish_reason) for answer in answers),
        acceptance=Acceptance.of(blocks, speculation.draft_len),
        outside_repetition=Acceptance.of(fresh, speculation.draft_len),
        draft_reads=_draft_reads(blocks, last_blocks, speculation) if speculation.num_draft_steps else None,
        kv_reads=_kv_reads(blocks, kv_bytes_per_token) if blocks and speculation.drafter != "oracle" else None,
    )


def summary_metrics(summary: Summary) -> tuple[Metric, ...]:
    """How a summary is reported."""
    tokens = (
        Metric("prompt_tokens", summary.prompt_tokens, "tokens"),
        Metric("new_tokens", summary.new_tokens, "tokens"),
    )
    return tokens + speculation_metrics(summary)


def speculation_metrics(summary: Summary) -> tuple[Metric, ...]:
    """The same without the token counts, which a report's requests hold themselves."""
    return _acceptance_metrics(summary) + _draft_metrics(summary.draft_reads) + _kv_metrics(summary.kv_reads)


def _draft_reads(
    blocks: list[Verification], last: list[Verification], speculation: SpeculationConfig
) -> DraftReads | None:
    """Each block's drafts took a step each."""
    drafted, last_drafted = ([block for block in some if block.num_drafts] for some in (blocks, last))
    if not last_drafted:
        return None
    read, steps = sum(block.draft_kv_tokens for block in drafted), sum(block.num_drafts for block in drafted)
    contexts = [block.context for block in last_drafted]
    return DraftReads(
        context=fmean(contexts),
        budget=fmean(speculation.budget(context) for context in contexts),
        last=fmean(block.draft_kv_tokens / block.num_drafts for block in last_drafted),
        mean=read / steps,
        share=read / sum(block.num_drafts * block.context for block in drafted),
    )


def _kv_reads(blocks: list[Verification], kv_bytes_per_token: int) -> KvReads:
    scale = kv_bytes_per_token / sum(block.num_tokens for block in blocks)
    return KvReads(
        speculative=scale * sum(block.draft_kv_tokens + block.verify_kv_tokens for block in blocks),
        plain=scale * sum(block.plain_kv_tokens for block in blocks),
    )


def _acceptance_metrics(summary: Summary) -> tuple[Metric, ...]:
    all_of_them, outside = summary.acceptance, summary.outside_repetition
    repetitive = all_of_them.num_verifications - outside.num_verifications
    means = (
        ("drafts_per_verification", all_of_them.mean_drafts),
        ("accepted_per_verification", all_of_them.mean),
        ("accepted_outside_repetition", outside.mean),
    )
    return (
        Metric("verifications", all_of_them.num_verifications, "count"),
        Metric("verifications_repetitive", repetitive, "count"),
        *(Metric(f"verifications_accepting_{i}", count, "count") for i, count in enumerate(all_of_them.counts)),
        *(Metric(name, mean, "tokens") for name, mean in means if mean is not None),
    )


def _draft_metrics(reads: DraftReads | None) -> tuple[Metric, ...]:
    if reads is None:
        return ()
    return (
        Metric("draft_context", reads.context, "tokens"),
        Metric("draft_budget", reads.budget, "tokens"),
        Metric("draft_read_last", reads.last, "tokens"),
        Metric("draft_read", reads.mean, "tokens"),
        Metric("draft_read_share", reads.share, "ratio"),
    )


def _kv_metrics(reads: KvReads | None) -> tuple[Metric, ...]:
    if reads is None:
        return ()
    return (
        Metric("kv_read_per_token", reads.speculative, "bytes"),
        Metric("kv_read_per_token_plain", reads.plain, "bytes"),
        Metric("kv_read_ratio", reads.ratio, "ratio"),
    )
