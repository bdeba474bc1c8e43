"""What a run of run.py found out, and its machine-readable report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

from sparsespec.builder.report import Machine, Metric, Report, RequestReport, Timing
from sparsespec.runtime.cli.decode_batch import Speed
from sparsespec.runtime.cli.summary import Summary, speculation_metrics, summarize, summary_metrics
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.cost_model import Way
from sparsespec.runtime.outputs import RequestOutput


@dataclass(frozen=True)
class PlainComparison:
    """The same requests decoded without speculation."""

    speed: Speed
    first_differences: tuple[int | None, ...]  # per answer, index of the first token that differs
    is_16_bit: bool  # then rounding, which depends on the rows of a step, may decide near-ties either way

    @property
    def num_differing(self) -> int:
        """Answers that differ."""
        return sum(place is not None for place in self.first_differences)


@dataclass(frozen=True)
class RunResult:
    """A run's requests and measurements."""

    prompt_numbers: tuple[int, ...]  # of the outputs, counted from 1; the other prompts were refused
    outputs: tuple[RequestOutput, ...]
    summary: Summary
    load_seconds: float
    speed: Speed
    plain: PlainComparison | None
    chosen: Way | None = None  # by adaptive, for the last steps

    @property
    def speed_ratio(self) -> float | None:
        """Tokens per second to plain decoding's; None where one of them is unknown."""
        plain = self.plain.speed.tokens_per_second if self.plain else None
        speed = self.speed.tokens_per_second
        return speed / plain if speed and plain else None


def first_differences(outputs: Sequence[RequestOutput], plain: Sequence[RequestOutput]) -> tuple[int | None, ...]:
    """Per answer of outputs, the index of the first token where plain decoding went on or ended otherwise."""
    pairs = zip(_answer_tokens(outputs), _answer_tokens(plain), strict=True)
    return tuple(_first_difference(found, expected) for found, expected in pairs)


@dataclass(frozen=True)
class ReportContext:
    """What a report tells beside the result."""

    config: Mapping[str, object]
    machine: Machine
    num_prompts: int
    speculation: SpeculationConfig
    kv_bytes_per_token: int


def make_report(result: RunResult, context: ReportContext) -> Report:
    """Describe a run; every answer is a request, and so is a refused prompt."""
    return Report(
        tool="run",
        version=version("sparsespec"),
        machine=context.machine,
        config=context.config,
        timings=_timings(result),
        metrics=summary_metrics(result.summary) + _speed_metrics(result),
        requests=tuple(_request_reports(result, context)),
    )


def _answer_tokens(outputs: Sequence[RequestOutput]) -> list[tuple[int, ...]]:
    return [answer.token_ids for output in outputs for answer in output.outputs]


def _first_difference(found: tuple[int, ...], expected: tuple[int, ...]) -> int | None:
    if found == expected:
        return None
    differing = (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b)
    return next(differing, min(len(found), len(expected)))


def _timings(result: RunResult) -> tuple[Timing, ...]:
    timings = (
        Timing("load", result.load_seconds),
        Timing("prefill", result.speed.prefill_seconds),
        Timing("decode", result.speed.decode_seconds),
    )
    if result.plain is None:
        return timings
    plain = result.plain.speed
    return (*timings, Timing("plain_prefill", plain.prefill_seconds), Timing("plain_decode", plain.decode_seconds))


def _speed_metrics(result: RunResult) -> tuple[Metric, ...]:
    plain = result.plain
    values = (
        ("tokens_per_second", result.speed.tokens_per_second, "tokens/s"),
        ("tokens_per_second_plain", plain.speed.tokens_per_second if plain else None, "tokens/s"),
        ("speed_ratio", result.speed_ratio, "ratio"),
        ("answers_differing", plain.num_differing if plain else None, "count"),
    )
    return tuple(Metric(name, value, unit) for name, value, unit in values if value is not None)


def _request_reports(result: RunResult, context: ReportContext) -> list[RequestReport]:
    outputs = dict(zip(result.prompt_numbers, result.outputs, strict=True))
    differences = iter(result.plain.first_differences if result.plain else ())
    reports: list[RequestReport] = []
    for number in range(1, context.num_prompts + 1):
        if number in outputs:
            singles = [replace(outputs[number], outputs=(answer,)) for answer in outputs[number].outputs]
            reports += [_request_report(single, context, next(differences, None)) for single in singles]
        else:
            reports.append(RequestReport(0, 0, "", "refused"))
    return reports


def _request_report(output: RequestOutput, context: ReportContext, difference: int | None) -> RequestReport:
    summary = summarize([output], context.speculation, context.kv_bytes_per_token)
    differing = () if difference is None else (Metric("first_difference", difference, "index"),)
    return RequestReport(
        prompt_tokens=summary.prompt_tokens,
        output_tokens=summary.new_tokens,
        text=output.outputs[0].text,
        finish_reason=summary.finish_reasons[0],
        metrics=speculation_metrics(summary) + differing,
    )
