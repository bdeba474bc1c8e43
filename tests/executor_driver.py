"""An executor run by hand, so that tests see the logits of every row."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsespec.builder.build_config import BuildConfig, DType
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.model_config import ModelConfig
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.torch_executor import TorchExecutor
from sparsespec.runtime.request import NO_DRAFTS, RequestSpec
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduled_step import Admission, PageGrant, ScheduledRows, ScheduledStep

MAX_NEW_TOKENS = 24


class Driver:
    """Runs an executor without a scheduler: one slot per prompt, pages in random order, the logits of every row."""

    def __init__(self, model: ModelConfig, weights: dict[str, Tensor], dtype: DType, prompts: list[list[int]]) -> None:
        longest = max(map(len, prompts)) + MAX_NEW_TOKENS
        build = BuildConfig(
            dtype=dtype, max_batch_size=len(prompts), max_seq_len=longest, max_draft_len=1, max_budget=8, page_size=16
        )
        self._pages_per_slot = -(-longest // build.page_size)
        # Tiny heads, which the kernels do not know: on a GPU too.
        config = ExecutorConfig(len(prompts), len(prompts) * self._pages_per_slot, attention="reference")
        speculation = SpeculationConfig(drafter="none")
        self._executor = TorchExecutor(EngineConfig(model, build), weights, speculation, config)
        self._executor.prepare(ScheduledStep(0, self._admissions(prompts), self._page_grants(len(prompts)), ()))

    def prefill(self, chunks: dict[int, int]) -> dict[int, Tensor]:
        """Run the next chunks[slot] prompt tokens of each slot; their logits."""
        rows = tuple(_rows(slot, Phase.PREFILL, count, logits=count, block=0) for slot, count in chunks.items())
        batch = self._executor.prepare(ScheduledStep(0, (), (), rows))
        logits = self._executor.execute(batch)
        for slot, count in chunks.items():
            self._executor.memory.state.kv_len[slot] += count
        return dict(zip(chunks, logits.split(list(chunks.values())), strict=True))

    def decode(self, phase: Phase, rows: dict[int, int]) -> dict[int, tuple[int, Tensor]]:
        """Run the next rows[slot] tokens of each slot, sampling after the last: that token and its logits."""
        scheduled = tuple(_rows(slot, phase, count, logits=1, block=1) for slot, count in rows.items())
        batch = self._executor.prepare(ScheduledStep(0, (), (), scheduled))
        logits = self._executor.execute(batch)
        results = self._executor.sample(batch, logits).wait()
        return {slot: (results[slot].tokens[0], row) for slot, row in zip(rows, logits, strict=True)}

    def _admissions(self, prompts: list[list[int]]) -> tuple[Admission, ...]:
        params = SamplingParams(temperature=0.0)
        return tuple(
            Admission(slot, RequestSpec(slot, tuple(prompt), params, 0, (), MAX_NEW_TOKENS, NO_DRAFTS))
            for slot, prompt in enumerate(prompts)
        )

    def _page_grants(self, num_slots: int) -> tuple[PageGrant, ...]:
        count = self._pages_per_slot
        pages = random.Random(0).sample(range(num_slots * count), num_slots * count)
        return tuple(PageGrant(slot, 0, tuple(pages[slot * count : (slot + 1) * count])) for slot in range(num_slots))


def _rows(slot: int, phase: Phase, num_rows: int, logits: int, block: int) -> ScheduledRows:
    needs = SamplingParams(temperature=0.0).needs
    return ScheduledRows(slot, 0, phase, num_rows, 0, logits, block, scored=False, needs=needs)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected; `pytest -rP` shows it."""
    error = float((found.cpu() - expected).norm() / expected.norm())
    print(f"relative error {error:.1e}")
    return error


def reference_logits(hf_model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """transformers' logits of every token."""
    with torch.inference_mode():
        logits: Tensor = hf_model(torch.tensor([tokens])).logits[0]
    return logits
