"""A device that computes nothing: it answers a scheduled step at once, with tokens of a given text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from sparsespec.plugins.phase import Phase
from sparsespec.runtime.request import RequestSpec
from sparsespec.runtime.results import SlotResult
from sparsespec.runtime.scheduled_step import ScheduledRows, ScheduledStep


@dataclass(frozen=True)
class MadeUpResults:
    """executor.PendingResults that are there already."""

    step: ScheduledStep
    results: dict[int, SlotResult]

    def wait(self) -> dict[int, SlotResult]:
        """See PendingResults."""
        return self.results


@dataclass
class _Slot:
    spec: RequestSpec
    kv_len: int = 0

    @property
    def num_output(self) -> int:
        return max(0, self.kv_len - len(self.spec.prompt_token_ids) + 1)


class MadeUpDevice:
    """executor.Executor whose batch is the scheduled step itself.

    text: the tokens that answers consist of, over and over, from a place of their own on.
    acceptance: chance that a draft is accepted once those before it are.
    """

    def __init__(self, text: Sequence[int], acceptance: float) -> None:
        self._text = tuple(text)
        self._acceptance = acceptance
        self._random = Random(0)
        self._slots: dict[int, _Slot] = {}

    def prepare(self, step: ScheduledStep) -> ScheduledStep:
        """Take in who joins."""
        for admission in step.admissions:
            self._slots[admission.slot] = _Slot(admission.spec)
        return step

    def execute(self, batch: ScheduledStep) -> ScheduledStep:
        """Nothing to do: there is no model."""
        return batch

    def sample(self, batch: ScheduledStep, logits: ScheduledStep) -> MadeUpResults:
        """Accept some drafts of every verification."""
        answered = [row for row in batch.rows if row.phase != Phase.DRAFT]
        results = {row.slot: self._advance(row, self._slots[row.slot]) for row in answered}
        return MadeUpResults(batch, {slot: result for slot, result in results.items() if result is not None})

    def _advance(self, row: ScheduledRows, slot: _Slot) -> SlotResult | None:
        if row.phase == Phase.PREFILL:
            slot.kv_len += row.num_rows
            return self._result(row, slot, num_accepted=0, first=0) if row.num_logits else None
        first, num_accepted = slot.num_output, self._draw_accepted(row.num_rows - 1)
        slot.kv_len = min(slot.kv_len + num_accepted + 1, slot.spec.end_len)
        return self._result(row, slot, num_accepted, first)

    def _draw_accepted(self, num_drafts: int) -> int:
        """As many as were accepted in a row."""
        accepted = 0
        while accepted < num_drafts and self._random.random() < self._acceptance:
            accepted += 1
        return accepted

    def _result(self, row: ScheduledRows, slot: _Slot, num_accepted: int, first: int) -> SlotResult:
        return SlotResult(
            phase=row.phase,
            tokens=self._tokens(slot.spec, range(first, slot.num_output)),
            num_drafts=0 if row.phase == Phase.PREFILL else row.num_rows - 1,
            num_accepted=num_accepted,
            kv_len=slot.kv_len,
            recent_start=slot.kv_len - slot.kv_len // 80,
            num_chosen=slot.kv_len // 27,
            logprobs=(),
        )

    def _tokens(self, spec: RequestSpec, places: range) -> tuple[int, ...]:
        return tuple(self._text[(spec.seed + place) % len(self._text)] for place in places)
