from __future__ import annotations

import pytest

from sparsespec.runtime.step_sizes import logits_of, rows_of, scored_of, sizes_up_to


def test_few_sizes_hold_all_rows() -> None:
    """At most 15 rows of padding up to 128, where products take the time of their weights, then at most an eighth."""
    found = [rows_of(rows) for rows in range(1, 5000)]
    assert found == sorted(found)
    for rows, size in enumerate(found, start=1):
        assert 0 <= size - rows <= max(15, rows // 8)
        assert rows_of(size) == size
    assert list(dict.fromkeys(found[:128])) == [1, 8, 16, 32, 48, 64, 80, 96, 112, 128]
    assert len(dict.fromkeys(found[:512])) == 10 + 2 * 8


@pytest.mark.parametrize("most", [1, 2, 8, 9, 100, 512])
def test_sizes_up_to_a_number_are_all_that_its_steps_come_to(most: int) -> None:
    assert sizes_up_to(most) == tuple(dict.fromkeys(rows_of(rows) for rows in range(1, most + 1)))


@pytest.mark.parametrize(("logits", "size"), [(0, 8), (1, 8), (9, 16), (513, 1024)])
def test_logits_beside_chunks_come_in_powers_of_two(logits: int, size: int) -> None:
    assert logits_of(logits) == size


@pytest.mark.parametrize(("scored", "most", "places"), [(0, 9, 0), (1, 1, 1), (1, 9, 8), (9, 9, 9), (17, 99, 32)])
def test_places_for_scores_are_as_many_as_there_are_at_most(scored: int, most: int, places: int) -> None:
    assert scored_of(scored, most) == places
