"""Branches: from positions of real texts, a few cycles of drafts and verification, all positions at once.

The prompts are prefilled once and every rule goes on from the same KV cache. What counts is the expected number of
accepted drafts given the drafts, sum over i of the product over j <= i of min(1, target_j / draft_j): unbiased, and
without the noise of the acceptance draws. For greedy it is the number accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.acceptance import Block
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.torch_executor import TorchExecutor
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.request import DraftShape, RequestSpec
from sparsespec.runtime.sampling_params import SamplingNeeds, SamplingParams
from sparsespec.runtime.scheduled_step import Admission, PageGrant, ScheduledRows, ScheduledStep

_CHUNK, _SLOTS_AT_ONCE = 256, 16
_K = 8
_GREEDY = SamplingParams(temperature=0.0).needs


@dataclass(frozen=True)
class Branches:
    """Prompts of one length, prefilled but for their last k + 1 tokens."""

    engine: EngineConfig
    weights: dict[str, Tensor]
    prompts: tuple[tuple[int, ...], ...]
    executor: ExecutorConfig
    kv_pool: Tensor

    @property
    def num_prefilled(self) -> int:
        """Tokens of each prompt that are in the cache."""
        return len(self.prompts[0]) - _K - 1


def prefill(engine: LoadedEngine, prompts: Sequence[Sequence[int]], num_cycles: int) -> Branches:
    """Run the prompts, all of one length, through the model."""
    num_slots, longest = len(prompts), len(prompts[0]) + (num_cycles + 1) * (_K + 1)
    config = replace(engine.config, build=_build(engine.config.build, num_slots, longest))
    sizes = ExecutorConfig(num_slots, num_slots * config.build.max_pages)
    executor = TorchExecutor(config, engine.weights, SpeculationConfig(drafter="none"), sizes)
    known = tuple(tuple(prompt) for prompt in prompts)
    branches = Branches(config, engine.weights, known, sizes, executor.memory.kv_pool)
    executor.prepare(_admission(branches, temperature=0.0))
    for first in range(0, num_slots, _SLOTS_AT_ONCE):
        slots = range(first, min(first + _SLOTS_AT_ONCE, num_slots))
        for start in range(0, branches.num_prefilled, _CHUNK):
            num_rows = min(_CHUNK, branches.num_prefilled - start)
            _run(executor, [_rows(slot, Phase.PREFILL, num_rows) for slot in slots])
    return branches


def expected_accepted(
    branches: Branches, speculation: SpeculationConfig, temperature: float, num_cycles: int
) -> list[float]:
    """Of each prompt, the expected number of accepted drafts over num_cycles cycles; speculation.k is 8."""
    assert speculation.k == _K
    executor = TorchExecutor(branches.engine, branches.weights, speculation, branches.executor, branches.kv_pool)
    slots = range(len(branches.prompts))
    executor.prepare(_admission(branches, temperature))
    executor.memory.state.kv_len[:] = branches.num_prefilled
    needs = SamplingParams(temperature=temperature).needs
    _run(executor, [_rows(slot, Phase.PREFILL, _K + 1, 0, 1, _K + 1, needs) for slot in slots])
    total = torch.zeros(len(slots), dtype=torch.float64, device=branches.kv_pool.device)
    for _ in range(num_cycles):
        for index in range(speculation.num_draft_steps):
            _run(executor, [_rows(slot, Phase.DRAFT, 1, index, 1, 0, needs) for slot in slots])
        total += _verify(executor, [_rows(slot, Phase.VERIFY, _K + 1, 0, _K + 1, _K + 1, needs) for slot in slots])
    expected: list[float] = total.tolist()
    return expected


def _run(executor: TorchExecutor, rows: list[ScheduledRows]) -> None:
    batch = executor.prepare(ScheduledStep(0, (), (), tuple(rows)))
    executor.sample(batch, executor.execute(batch))


def _verify(executor: TorchExecutor, rows: list[ScheduledRows]) -> Tensor:
    """A step of verifications alone; returns the [S] expected acceptances."""
    batch = executor.prepare(ScheduledStep(0, (), (), tuple(rows)))
    logits = executor.execute(batch)
    with torch.inference_mode():
        block = executor.verified_block(batch.blocks, logits)
        expected = _expected(block)
    executor.judge(batch, logits, block)
    return expected


def _expected(block: Block) -> Tensor:
    chosen = block.drafts[..., None]
    target = block.target_probs[:, :-1].gather(2, chosen).squeeze(2).double()
    draft = block.draft_probs.gather(2, chosen).squeeze(2).double()
    index = torch.arange(block.drafts.shape[1], device=block.drafts.device)
    chance = (target / draft).nan_to_num(0.0).clamp(max=1.0) * (index < block.num_drafts[:, None])
    return chance.cumprod(dim=1).sum(dim=1)


def _admission(branches: Branches, temperature: float) -> ScheduledStep:
    pages = branches.engine.build.max_pages
    room = branches.engine.build.max_seq_len - len(branches.prompts[0])
    admissions, grants = [], []
    for slot, prompt in enumerate(branches.prompts):
        params = SamplingParams(temperature=temperature, max_tokens=room, ignore_eos=True)
        spec = RequestSpec(slot, prompt, params, slot, (), room, DraftShape(_K, _K))
        admissions.append(Admission(slot, spec))
        grants.append(PageGrant(slot, 0, tuple(range(slot * pages, (slot + 1) * pages))))
    return ScheduledStep(0, tuple(admissions), tuple(grants), ())


def _rows(
    slot: int,
    phase: Phase,
    num_rows: int,
    draft_index: int = 0,
    num_logits: int = 0,
    block_rows: int = 0,
    needs: SamplingNeeds = _GREEDY,
) -> ScheduledRows:
    scored = block_rows > 0
    return ScheduledRows(slot, 0, phase, num_rows, draft_index, num_logits, block_rows, scored, needs)


def _build(build: BuildConfig, num_slots: int, longest: int) -> BuildConfig:
    rows = max(num_slots * (_K + 1), _SLOTS_AT_ONCE * _CHUNK)
    return replace(
        build,
        max_batch_size=num_slots,
        max_seq_len=longest,
        max_num_tokens=rows,
        max_draft_len=_K,
        max_budget=longest,
    )
