"""When tokens reach a caller: time between arrivals, and to the first token, while others decode and prompts join."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import quantiles

from sparsespec.runtime.collector import freeze_heap
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from throughput_study.cases import Traffic
from throughput_study.windows import Load, finish

# Steps without a joining prompt.
_STEADY_STEPS = 180


@dataclass(frozen=True)
class Arrivals:
    """Of requests that decode: milliseconds between two arrivals of tokens, of which several may come at once."""

    count: int
    p50_ms: float
    p99_ms: float
    tokens: float  # that arrive at once, mean
    token_ms: float  # mean time per token

    def summary(self) -> str:
        """In words."""
        return f"p50 {self.p50_ms:.1f} p99 {self.p99_ms:.1f} ms, {self.token_ms:.2f} ms a token"


@dataclass(frozen=True)
class LatencyRun:
    """One way to decode."""

    label: str
    speculation: SpeculationConfig
    num_requests: int
    context: float
    chunk_size: int
    steady: Arrivals
    beside_prompts: Arrivals  # while long prompts join, one after another
    prompt_len: int  # of those
    first_token_ms: tuple[float, ...]  # from submission to the first token of each

    def summary(self) -> str:
        """A line of a table."""
        first = sum(self.first_token_ms) / len(self.first_token_ms)
        return f"{self.steady.summary()}; beside prompts {self.beside_prompts.summary()}; first token {first:.0f} ms"


class Clock:
    """Notes when tokens arrive."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._last: dict[int, float] = {}
        self.gaps: list[float] = []  # seconds
        self.tokens: list[int] = []

    def step(self, watched: Sequence[int]) -> list[int]:
        """One step; notes arrivals of the watched requests and returns whom tokens reached."""
        deltas = self._load.step()
        now = time.perf_counter()
        reached = [delta.request_id for delta in deltas if delta.token_ids]
        for delta in deltas:
            if delta.request_id in watched and delta.token_ids:
                if delta.request_id in self._last:
                    self.gaps.append(now - self._last[delta.request_id])
                    self.tokens.append(len(delta.token_ids))
                self._last[delta.request_id] = now
        return reached

    def arrivals(self) -> Arrivals:
        """What was noted."""
        percent = quantiles(self.gaps, n=100)
        total, tokens = 1e3 * sum(self.gaps), sum(self.tokens)
        count = len(self.gaps)
        return Arrivals(count, 1e3 * percent[49], 1e3 * percent[98], tokens / count, total / tokens)


@dataclass(frozen=True)
class LatencyCase:
    """Requests that decode, and prompts that join them one after another."""

    traffic: Traffic
    joining: Traffic
    runtime: RuntimeConfig
    prepare: Callable[[LLM], object] | None = None  # before the first step


def measure_latency(engine: LoadedEngine, label: str, speculation: SpeculationConfig, case: LatencyCase) -> LatencyRun:
    """Joining requests are cancelled after their first token."""
    llm = LLM(engine, speculation, case.runtime)
    if case.prepare is not None:
        case.prepare(llm)
    load = Load(llm, case.traffic.prompts, case.traffic.params)
    load.warm_up()
    freeze_heap()
    running = list(load.lengths)
    _join(load, case.joining.prompts[0], case, None)  # captures the graphs
    finish()
    steady, beside = Clock(load), Clock(load)
    for _ in range(_STEADY_STEPS):
        steady.step(running)
    context = load.context
    first_token_ms = [_join(load, prompt, case, (beside, running)) for prompt in case.joining.prompts]
    load.end()
    return LatencyRun(
        label=label,
        speculation=speculation,
        num_requests=len(running),
        context=context,
        chunk_size=case.runtime.chunk_size,
        steady=steady.arrivals(),
        beside_prompts=beside.arrivals(),
        prompt_len=len(case.joining.prompts[0]),
        first_token_ms=tuple(first_token_ms),
    )


def _join(load: Load, prompt: Sequence[int], case: LatencyCase, noted: tuple[Clock, list[int]] | None) -> float:
    """Milliseconds to the first token of a request that joins."""
    clock, running = noted or (Clock(load), [])
    started = time.perf_counter()
    request_id = load.add(prompt, case.joining.params)
    while request_id not in clock.step(running):
        pass
    taken = time.perf_counter() - started
    load.remove(request_id)
    return 1e3 * taken
