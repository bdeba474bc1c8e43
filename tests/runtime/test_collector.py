"""The collector is told what to leave alone."""

from __future__ import annotations

import gc

from sparsespec.runtime import freeze_heap


class Ring:
    """Holds itself."""

    def __init__(self) -> None:
        self.own = self


def test_what_exists_is_left_alone_and_what_comes_is_collected() -> None:
    kept = Ring()
    try:
        freeze_heap()
        assert gc.get_freeze_count() > 1000
        assert not any(each is kept for each in gc.get_objects())
        later = Ring()
        assert any(each is later for each in gc.get_objects())
    finally:
        gc.unfreeze()
    assert any(each is kept for each in gc.get_objects())
