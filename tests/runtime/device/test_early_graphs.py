"""Which graphs an adaptive engine has from the start: those that its steps come to."""

from __future__ import annotations

import pytest

from sparsespec.runtime.device.early_graphs import early_shapes
from sparsespec.runtime.device.step_graphs import StepShape

SHAPE = StepShape.of_every_row


@pytest.mark.parametrize(("batch", "most"), [(1, 10), (8, 20), (32, 40), (64, 70), (65, 20), (512, 50)])
def test_there_are_few(batch: int, most: int) -> None:
    shapes = early_shapes(batch, 8, max_scored=batch)
    assert len(shapes) == len(dict.fromkeys(shapes)) <= most


def test_a_few_requests_find_all_theirs() -> None:
    """Of eight that draft up to eight: plain steps, drafts alone, verifications among drafts and all at once."""
    shapes = early_shapes(8, 8, max_scored=8)
    for shape in (SHAPE(8), StepShape(8, 8, 0, every_row=True, drafts_only=True), SHAPE(8 + 8, 1 * 8), SHAPE(72, 8)):
        assert shape in shapes


def test_many_requests_or_no_drafts_have_plain_steps_alone() -> None:
    for shapes in (early_shapes(512, 8, max_scored=512), early_shapes(8, 0, max_scored=0)):
        assert all(shape.num_scored == 0 and not shape.drafts_only for shape in shapes)
