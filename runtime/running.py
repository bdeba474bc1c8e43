"""A request in its slot, and its part in a step. No torch."""

from __future__ import annotations

from dataclasses import replace

from sparsespec.plugins.phase import Phase
from sparsespec.runtime.request import Request
from sparsespec.runtime.scheduled_step import ScheduledRows


class RunningRequest:
    """A request in its slot, and the rows that it takes in cycle after cycle."""

    def __init__(self, request: Request, slot: int, generation: int) -> None:
        self.request = request
        self.slot = slot
        self.generation = generation
        self.present = True  # its pages are on the device, and it takes part in steps
        self.out_of_step = False  # it was left out of some, and has to find its place in the stagger again
        self.may_draft = request.spec.draft_len > 0
        steps = range(request.spec.num_draft_steps)
        self.draft_rows = [self._rows(Phase.DRAFT, 1, index, 1, 0, scored=False) for index in steps]
        self._verify_rows: dict[int, tuple[ScheduledRows, ScheduledRows]] = {}
        self.verify_rows = self._verify_rows_of(request.num_drafts)  # not scored, and scored

    def leave(self) -> None:
        """It takes part in no further steps until it is present again."""
        self.present, self.out_of_step = False, True

    def change_drafts(self, num_drafts: int) -> None:
        """The cycle that begins, and those after it, have so many drafts."""
        self.request.change_drafts(num_drafts)
        self.verify_rows = self._verify_rows_of(num_drafts)

    def chunk_rows(self, num_rows: int) -> ScheduledRows:
        """Of a prompt that goes on."""
        return self._rows(Phase.PREFILL, num_rows, draft_index=0, num_logits=0, block_rows=0, scored=False)

    def last_chunk_rows(self, num_rows: int, scored: bool) -> ScheduledRows:
        """Of a prompt that ends here."""
        block = self.request.spec.prompt_block
        return self._rows(Phase.PREFILL, num_rows, draft_index=0, num_logits=1, block_rows=block, scored=scored)

    def _verify_rows_of(self, num_drafts: int) -> tuple[ScheduledRows, ScheduledRows]:
        if num_drafts not in self._verify_rows:
            block = num_drafts + 1
            unscored = self._rows(Phase.VERIFY, block, draft_index=0, num_logits=block, block_rows=block, scored=False)
            self._verify_rows[num_drafts] = (unscored, replace(unscored, scored=True))
        return self._verify_rows[num_drafts]

    def _rows(
        self, phase: Phase, num_rows: int, draft_index: int, num_logits: int, block_rows: int, scored: bool
    ) -> ScheduledRows:
        return ScheduledRows(
            slot=self.slot,
            generation=self.generation,
            phase=phase,
            num_rows=num_rows,
            draft_index=draft_index,
            num_logits=num_logits,
            block_rows=block_rows,
            scored=scored,
            needs=self.request.spec.needs,
        )
