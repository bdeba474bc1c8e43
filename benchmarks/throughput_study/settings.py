"""What experiments share: what the command line says, ways to draft, and limits of engines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.errors import InputError
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.sampling_params import SamplingParams
from throughput_study.cases import Measured
from throughput_study.engines import real_engine
from throughput_study.growth import GrowthRun
from throughput_study.latency import LatencyRun

DEFAULT = SpeculationConfig()
ADAPTIVE = replace(DEFAULT, adaptive=True)
# Of 8 drafts: the paper's Qwen3-8B.
PAPER_AGREEMENT = 6.16
# Cycles of a window, and steps of plain decoding.
CYCLES, PLAIN_STEPS = 10, 40
# Prompt tokens that join a step of the real model: many, since prompts are not what is measured.
CHUNK = 16384

Result = Measured | GrowthRun | LatencyRun
Results = Iterator[Result]


@dataclass(frozen=True)
class Choice:
    """What the command line says."""

    engine_dir: Path | None
    batch: int | None
    context: int | None

    def engine(self, batch: int, length: int) -> LoadedEngine:
        """The real model for `batch` requests of at most `length` tokens."""
        if self.engine_dir is None:
            raise InputError("engine_dir: this experiment needs an engine directory, found none")
        return real_engine(self.engine_dir, limits(batch, length, CHUNK))


def limits(batch: int, length: int, chunk_size: int, max_budget: int = 2048) -> BuildConfig:
    """An engine's, for a batch that decodes together."""
    return BuildConfig(
        dtype="bfloat16",
        max_batch_size=batch,
        max_seq_len=length,
        max_num_tokens=chunk_size + 17 * batch,
        max_budget=max_budget,
    )


def greedy(max_tokens: int) -> SamplingParams:
    """Whose requests do not end by themselves."""
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
