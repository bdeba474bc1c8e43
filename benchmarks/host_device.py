"""A device that computes nothing: it answers a scheduled step at once, with tokens of a given text.

What the host does for a step of fixed shapes is real: its numbers are packed and its results read as GraphExecutor does
it. What the device would do is made up in `execute`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from time import monotonic, sleep

import torch

from sparsespec.plugins.accept_drafts.inputs import RESULT_FIELDS
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.device.graph_executor import GraphBatch
from sparsespec.runtime.device.graph_results import GraphResults
from sparsespec.runtime.device.step_buffers import HostMetadata
from sparsespec.runtime.device.step_graphs import StepShape
from sparsespec.runtime.request import RequestSpec
from sparsespec.runtime.scheduled_step import ScheduledRows, ScheduledStep


@dataclass
class _Slot:
    spec: RequestSpec
    kv_len: int = 0

    @property
    def num_output(self) -> int:
        return max(0, self.kv_len - len(self.spec.prompt_token_ids) + 1)


class MadeUpDevice:
    """executor.Executor of steps of fixed shapes.

    text: the tokens that answers consist of, over and over, from a place of their own on.
    acceptance: chance that a draft is accepted once those before it are.
    step_s: seconds that `execute` takes at least. It sleeps, so that other threads run as they do while one waits for
    a GPU.
    """

    def __init__(
        self, text: Sequence[int], acceptance: float, host: HostMetadata, max_rows: int, step_s: float = 0.0
    ) -> None:
        """max_rows: of a verification."""
        self._text = tuple(text)
        self._acceptance = acceptance
        self._step_s = step_s
        self._host = host
        self._max_rows = max_rows
        self._random = Random(0)
        self._slots: dict[int, _Slot] = {}
        self._results = torch.zeros(host.num_slots, len(RESULT_FIELDS) + max_rows, dtype=torch.int32)

    def prepare(self, step: ScheduledStep) -> GraphBatch:
        """What GraphExecutor does before it calls CUDA."""
        if not step.rows:
            return GraphBatch(step, None)
        self._host.pack(step)
        return GraphBatch(step, StepShape.of(step, self._host.num_slots))

    def execute(self, batch: GraphBatch) -> None:
        """Make up what the device does, and take as long as it would."""
        end = monotonic() + self._step_s
        self._make_up(batch)
        if self._step_s:
            sleep(max(0.0, end - monotonic()))

    def sample(self, batch: GraphBatch, logits: None) -> GraphResults:
        """What GraphExecutor does but for calls of CUDA."""
        return GraphResults(batch.step, self._results, logprobs=None)

    def _make_up(self, batch: GraphBatch) -> None:
        """Take in who joins, and accept some drafts of every verification."""
        for admission in batch.step.admissions:
            self._slots[admission.slot] = _Slot(admission.spec)
        told = {row.slot: self._advance(row, self._slots[row.slot]) for row in batch.step.landing}
        lines = {slot: numbers for slot, numbers in told.items() if numbers}
        if lines:
            self._results[list(lines)] = torch.tensor(list(lines.values()), dtype=torch.int32)

    def _advance(self, row: ScheduledRows, slot: _Slot) -> list[int]:
        """Returns the slot's line as AcceptDrafts writes it; none where a prompt goes on."""
        if row.phase == Phase.PREFILL:
            slot.kv_len += row.num_rows
            return self._line(slot, num_drafts=0, num_accepted=0, first=0) if row.num_logits else []
        first, num_drafts = slot.num_output, row.num_rows - 1
        num_accepted = self._draw_accepted(num_drafts)
        slot.kv_len = min(slot.kv_len + num_accepted + 1, slot.spec.end_len)
        return self._line(slot, num_drafts, num_accepted, first)

    def _draw_accepted(self, num_drafts: int) -> int:
        """As many as were accepted in a row."""
        accepted = 0
        while accepted < num_drafts and self._random.random() < self._acceptance:
            accepted += 1
        return accepted

    def _line(self, slot: _Slot, num_drafts: int, num_accepted: int, first: int) -> list[int]:
        tokens = self._tokens(slot.spec, range(first, slot.num_output))
        recent_start, num_chosen = slot.kv_len - slot.kv_len // 80, slot.kv_len // 27
        unused = [0] * (self._max_rows - len(tokens))
        return [len(tokens), num_drafts, num_accepted, slot.kv_len, recent_start, num_chosen, *tokens, *unused]

    def _tokens(self, spec: RequestSpec, places: range) -> list[int]:
        return [self._text[(spec.seed + place) % len(self._text)] for place in places]
