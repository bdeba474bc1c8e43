"""Plain decoding along given tokens: what the model thinks of each, from a row of its own, as if it had chosen them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsespec.builder.build_config import BuildConfig
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.config import AttentionName, SpeculationConfig
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.torch_executor import TorchExecutor
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.request import NO_DRAFTS, RequestSpec
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduled_step import Admission, PageGrant, ScheduledRows, ScheduledStep

_GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True)
class Way:
    """One way to decode the same plainly; it rounds differently from another."""

    batch_size: int
    chunk_size: int  # prompt tokens of a slot in one step
    attention: AttentionName


def forced_logits(engine: LoadedEngine, texts: Sequence[Sequence[int]], num_new: int, way: Way) -> Tensor:
    """[len(texts), num_new, vocab] logits that decide the last num_new tokens of each text, in the engine's type."""
    groups = [texts[first : first + way.batch_size] for first in range(0, len(texts), way.batch_size)]
    return torch.cat([_group_logits(engine, group, num_new, way) for group in groups])


def _group_logits(engine: LoadedEngine, texts: Sequence[Sequence[int]], num_new: int, way: Way) -> Tensor:
    executor = _executor(engine, texts, way)
    left = {slot: len(text) - num_new for slot, text in enumerate(texts)}
    first: dict[int, Tensor] = {}
    while left:
        chunks = {slot: min(way.chunk_size, count) for slot, count in left.items()}
        logits = _run(executor, Phase.PREFILL, chunks)
        first |= {slot: row for slot, row in zip(chunks, logits, strict=True) if chunks[slot] == left[slot]}
        left = {slot: count - chunks[slot] for slot, count in left.items() if count > chunks[slot]}
    steps = [torch.stack([first[slot] for slot in range(len(texts))])]
    steps += [_run(executor, Phase.VERIFY, dict.fromkeys(range(len(texts)), 1)) for _ in range(num_new - 1)]
    return torch.stack(steps, dim=1)


def _run(executor: TorchExecutor, phase: Phase, rows: dict[int, int]) -> Tensor:
    """The next rows[slot] tokens of each slot; the logits of the last of them, [len(rows), vocab]."""
    scheduled = tuple(
        ScheduledRows(slot, 0, phase, count, 0, num_logits=1, block_rows=0, scored=False, needs=_GREEDY.needs)
        for slot, count in rows.items()
    )
    logits = executor.execute(executor.prepare(ScheduledStep(0, (), (), scheduled)))
    for slot, count in rows.items():
        executor.memory.state.kv_len[slot] += count
    return logits


def _executor(engine: LoadedEngine, texts: Sequence[Sequence[int]], way: Way) -> TorchExecutor:
    """With a slot for each text, whose tokens are all there from the beginning."""
    longest = max(map(len, texts))
    rows = len(texts) * max(way.chunk_size, engine.config.build.max_draft_len + 1)
    build = replace(engine.config.build, max_batch_size=len(texts), max_seq_len=longest, max_num_tokens=rows)
    executor = TorchExecutor(
        replace(engine.config, build=build),
        engine.weights,
        SpeculationConfig(drafter="none"),
        ExecutorConfig(len(texts), len(texts) * build.max_pages, way.attention),
    )
    specs = [RequestSpec(slot, tuple(text), _GREEDY, 0, (), 1, NO_DRAFTS) for slot, text in enumerate(texts)]
    executor.prepare(
        ScheduledStep(
            index=0,
            admissions=tuple(Admission(slot, spec) for slot, spec in enumerate(specs)),
            page_grants=tuple(PageGrant(slot, 0, _pages_of(slot, build)) for slot in range(len(texts))),
            rows=(),
        )
    )
    return executor


def _pages_of(slot: int, build: BuildConfig) -> tuple[int, ...]:
    return tuple(range(slot * build.max_pages, (slot + 1) * build.max_pages))
