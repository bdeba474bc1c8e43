"""Whole runs: requests that grow from their prompts to the model's last position, all of the text's phases included."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sparsespec.runtime.cli.repetition import repetitive_verifications
from sparsespec.runtime.collector import freeze_heap
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.outputs import RequestOutput
from throughput_study.cases import RESULT_LAG, Traffic
from throughput_study.windows import Load, finish

# Mean context between two readings of the clock.
_STRIDE = 500


@dataclass(frozen=True)
class Reading:
    """Where a run was at a moment."""

    context: float  # mean, prompt included
    num_tokens: int  # new ones so far
    seconds: float  # since all requests decode
    chosen: str = ""  # by an adaptive LLM, at this moment


@dataclass(frozen=True)
class GrowthRun:
    """One way to decode over the whole of the requests' lives."""

    label: str
    speculation: SpeculationConfig
    temperature: float
    readings: tuple[Reading, ...]
    num_steps: int
    prefill_seconds: float
    accepted: float  # of k, mean over verifications with drafts; 0 for plain decoding
    accepted_fresh: float  # outside repetitive stretches
    fresh_share: float  # of verifications

    def summary(self) -> str:
        """A line of a table."""
        taken = f"{self.seconds:.1f} s, {self.accepted:.2f} accepted"
        return f"T {self.temperature}: {self.tokens_per_second:8.0f} tokens/s, {taken}"

    @property
    def seconds(self) -> float:
        """From the first moment at which all decode to the end of the last."""
        return self.readings[-1].seconds

    @property
    def tokens_per_second(self) -> float:
        """Over that time."""
        return self.readings[-1].num_tokens / self.seconds

    def rate_at(self, context: float) -> float:
        """Tokens a second between the two readings that `context` lies between."""
        first, last = self._around(context)
        return (last.num_tokens - first.num_tokens) / (last.seconds - first.seconds)

    def chosen_at(self, context: float) -> str:
        """By an adaptive LLM at the first reading beyond `context`."""
        return self._around(context)[1].chosen

    def _around(self, context: float) -> tuple[Reading, Reading]:
        pairs = zip(self.readings, self.readings[1:], strict=False)
        return next(pair for pair in pairs if pair[0].context <= context <= pair[1].context)


def grow(
    engine: LoadedEngine, label: str, speculation: SpeculationConfig, traffic: Traffic, chunk_size: int
) -> GrowthRun:
    """Until every request has ended."""
    llm = LLM(engine, speculation, RuntimeConfig(chunk_size=chunk_size, result_lag=RESULT_LAG))
    load = Load(llm, traffic.prompts, traffic.params)
    began = time.perf_counter()
    load.warm_up()
    freeze_heap()
    finish()
    started, base = time.perf_counter(), sum(load.lengths.values())
    readings, num_steps = [Reading(load.context, 0, 0.0)], 0
    while llm.has_requests:
        load.step()
        num_steps += 1
        if load.context - readings[-1].context >= _STRIDE:
            readings.append(_reading(load, base, started))
    finish()
    readings.append(_reading(load, base, started))
    outputs = [llm.take_output(each) for each in load.lengths]
    accepted, fresh, share = acceptance(outputs)
    return GrowthRun(
        label=label,
        speculation=speculation,
        temperature=traffic.params.temperature,
        readings=tuple(readings),
        num_steps=num_steps,
        prefill_seconds=started - began,
        accepted=accepted,
        accepted_fresh=fresh,
        fresh_share=share,
    )


def acceptance(outputs: Sequence[RequestOutput]) -> tuple[float, float, float]:
    """Mean accepted drafts, the same outside repetitive stretches, and the share of verifications that are outside."""
    everything: list[int] = []
    fresh: list[int] = []
    for output in outputs:
        for answer in output.outputs:
            checks = zip(answer.verifications, repetitive_verifications(answer), strict=True)
            counted = [(check.num_accepted, repeats) for check, repeats in checks if check.num_drafts > 0]
            everything += [accepted for accepted, _ in counted]
            fresh += [accepted for accepted, repeats in counted if not repeats]
    return _mean(everything), _mean(fresh), len(fresh) / max(1, len(everything))


def _mean(numbers: Sequence[int]) -> float:
    return sum(numbers) / max(1, len(numbers))


def _reading(load: Load, base: int, started: float) -> Reading:
    num_tokens = sum(load.lengths.values()) - base
    return Reading(load.context, num_tokens, time.perf_counter() - started, load.chosen)
