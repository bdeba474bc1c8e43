"""What the host sends for a step of fixed shapes, number by number."""

from __future__ import annotations

import pytest

from sparsespec.plugins.phase import DRAFT, IDLE, PREFILL, VERIFY
from sparsespec.runtime.device.step_buffers import HostMetadata
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduled_step import PageGrant, ScheduledRows, ScheduledStep

NEEDS = SamplingParams().needs
ROWS = (
    ScheduledRows(0, 0, DRAFT, 1, 2, num_logits=1, block_rows=0, scored=False, needs=NEEDS),
    ScheduledRows(2, 0, VERIFY, 4, 0, num_logits=4, block_rows=4, scored=True, needs=NEEDS),
    ScheduledRows(3, 0, VERIFY, 1, 0, num_logits=1, block_rows=1, scored=False, needs=NEEDS),
    ScheduledRows(4, 0, PREFILL, 9, 0, num_logits=1, block_rows=5, scored=True, needs=NEEDS),
)
# Of six slots, of which the second and the last take no part.
ROW_START, LOGIT_START = [0, 1, 1, 5, 6, 15, 15], [0, 1, 1, 5, 6, 7, 7]
PHASE, DRAFT_INDEX = [DRAFT, IDLE, VERIFY, VERIFY, PREFILL, IDLE], [2, 0, 0, 0, 0, 0]
SCORE_ROWS, SCORE_INDEX = [0, 0, 4, 0, 5, 0], [0, 0, 0, 0, 1, 0]
BLOCK_ROWS, NO_SCORES = [0, 0, 4, 1, 5, 0], [0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("scored", "scores"), [(True, [*SCORE_ROWS, *SCORE_INDEX]), (False, [*NO_SCORES, *NO_SCORES])], ids=["yes", "no"]
)
def test_a_step(scored: bool, scores: list[int]) -> None:
    host = HostMetadata(num_slots=6, max_grants=4, max_pages=10, scored=scored)
    step = ScheduledStep(0, (), (PageGrant(2, 3, (70, 71)), PageGrant(4, 0, (5,))), ROWS)
    num_grants, grant_place, grant_page = 3, [23, 24, 40, 0], [70, 71, 5, 0]
    of_slots = [*ROW_START, *PHASE, *DRAFT_INDEX, *scores, *LOGIT_START, *BLOCK_ROWS]
    assert host.pack(step).tolist() == [*of_slots, num_grants, *grant_place, *grant_page]


def test_a_step_of_nobody() -> None:
    """Sent before graphs run that change no slot."""
    packed = HostMetadata(num_slots=2, max_grants=1, max_pages=10, scored=True).pack(ScheduledStep(0, (), (), ()))
    assert packed.tolist() == [0, 0, 0, IDLE, IDLE, *[0] * 14]
