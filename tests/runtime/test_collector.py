"""The collector is told what to leave alone."""

from __future__ import annotations

import gc

import pytest

from sparsespec.runtime import freeze_heap
from sparsespec.runtime.collector import collector_held
from throughput_study.windows import collector_watched


class Ring:
    """Holds itself."""

    def __init__(self) -> None:
        self.own = self


def test_what_exists_is_left_alone_and_what_comes_is_collected() -> None:
    kept, threshold = Ring(), gc.get_threshold()
    try:
        freeze_heap()
        assert gc.get_threshold() == (50_000, *threshold[1:])
        assert gc.get_freeze_count() > 1000
        assert not any(each is kept for each in gc.get_objects())
        later = Ring()
        assert any(each is later for each in gc.get_objects())
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)
    assert any(each is kept for each in gc.get_objects())


def make_garbage() -> None:
    """More than the collector's first threshold."""
    for _ in range(3 * gc.get_threshold()[0]):
        Ring()


def test_no_collection_begins_while_the_collector_is_held() -> None:
    with collector_held(), collector_watched() as clock:
        make_garbage()
    assert clock.seconds == 0
    with collector_watched() as clock:
        make_garbage()
    assert clock.seconds > 0


def test_who_has_disabled_the_collector_keeps_it_so() -> None:
    gc.disable()
    try:
        with pytest.raises(RuntimeError, match="of the body"), collector_held():
            raise RuntimeError("of the body")
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(RuntimeError, match="of the body"), collector_held():
        raise RuntimeError("of the body")
    assert gc.isenabled()
