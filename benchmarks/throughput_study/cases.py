"""What is measured: an engine, requests and a way to draft; and what came of it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from sparsespec.runtime.collector import freeze_heap
from sparsespec.runtime.config import PolicyName, RuntimeConfig, SpeculationConfig
from sparsespec.runtime.gpu_timeline import Timeline
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.sampling_params import SamplingParams
from throughput_study.prediction import graph_executor, predicted_step_ms
from throughput_study.timeline import record, summarise
from throughput_study.windows import Load, Window

PLAIN = SpeculationConfig(drafter="none")
RESULT_LAG = 4
_PROFILED_STEPS = 10


@dataclass(frozen=True)
class Traffic:
    """Requests that decode together."""

    prompts: Sequence[Sequence[int]]
    params: SamplingParams


@dataclass(frozen=True)
class Measured:
    """One way to decode, measured in a window."""

    label: str
    speculation: SpeculationConfig
    window: Window
    timeline: Timeline | None = None
    num_graphs: int = 0
    graph_bytes: int = 0
    more: tuple[Window, ...] = field(default=())  # further windows of the same requests
    predicted_step_ms: float | None = None  # by a cost model from kernel times of the same run

    def summary(self) -> str:
        """A line of a table."""
        window = self.window
        step = f"{window.step_ms:8.3f} ms a step, {window.num_tokens / window.num_steps:6.1f} tokens a step"
        return f"{step}, {window.tokens_per_second:8.0f} tokens/s"

    def speedup_over(self, plain: Measured) -> float:
        """Tokens a second over plain decoding's."""
        return self.window.tokens_per_second / plain.window.tokens_per_second


@dataclass(frozen=True)
class Rig:
    """Builds an LLM for every case anew: its memory is another's first."""

    engine: LoadedEngine
    chunk_size: int
    prepare: Callable[[LLM], object] | None = None  # before the first step
    measure_more: Callable[[Load], tuple[Window, ...]] | None = None
    policy: PolicyName = "auto"
    predicts: bool = False  # what a step should take, besides

    def run(self, label: str, speculation: SpeculationConfig, traffic: Traffic, num_steps: int) -> Measured:
        """A window of num_steps steps, and a timeline of a few more."""
        config = RuntimeConfig(chunk_size=self.chunk_size, result_lag=RESULT_LAG, policy=self.policy)
        llm = LLM(self.engine, speculation, config)
        if self.prepare is not None:
            self.prepare(llm)
        load = Load(llm, traffic.prompts, traffic.params)
        load.warm_up()
        load.settle()
        freeze_heap()
        window = load.measure(num_steps)
        more = () if self.measure_more is None else self.measure_more(load)
        timeline = summarise(record(load.step, _PROFILED_STEPS))
        captured = graph_executor(llm).graphs.captured.values()
        num_bytes = sum(each.num_bytes for each in captured)
        load.end()
        predicted = predicted_step_ms(llm, window) if self.predicts else None
        return Measured(label, speculation, window, timeline, len(captured), num_bytes, more, predicted)


def release() -> None:
    """Give back what the last LLM held."""
    gc.unfreeze()
    gc.collect()
    torch.cuda.empty_cache()


def cycle_steps(speculation: SpeculationConfig, num_cycles: int) -> int:
    """Steps of whole cycles, so that every request verifies equally often in a window."""
    return (speculation.num_draft_steps + 1) * num_cycles
