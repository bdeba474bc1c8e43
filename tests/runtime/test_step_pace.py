from __future__ import annotations

from dataclasses import replace

import pytest

from sparsespec.runtime.cost_model import Kind
from sparsespec.runtime.cycles import Load
from sparsespec.runtime.step_pace import StepPace

LOAD = Load(100, 4000.0, 0.5)
LOOKS = 12  # after which a kind is known


def watched(pace: StepPace, kind: Kind, ratio: float, num_looks: int = LOOKS, load: Load = LOAD) -> StepPace:
    for _ in range(num_looks + 1):  # the first one still belongs to what was decoded before
        pace.observe(kind, load, 0.02 * ratio, 0.02)
    return pace


def test_nothing_is_corrected_before_two_periods_have_passed() -> None:
    assert watched(StepPace(), "lockstep", 1.3, LOOKS - 1).factor("lockstep", LOAD) == 1
    assert watched(StepPace(), "lockstep", 1.3).factor("lockstep", LOAD) == pytest.approx(1.3)


def test_looks_after_a_change_are_passed_over() -> None:
    """Cycles end as they began."""
    pace = watched(StepPace(), "unified", 2.5, num_looks=4)
    watched(pace, "unified", 1.1, num_looks=7)
    assert pace.factor("unified", LOAD) == pytest.approx(1.1)


def test_what_disturbed_a_period_is_forgotten() -> None:
    pace = watched(watched(StepPace(), "unified", 2.0, num_looks=8), "unified", 1.1, num_looks=4)
    assert pace.factor("unified", LOAD) == pytest.approx(1.1)
    watched(pace, "unified", 1.4, num_looks=4 * 4)
    assert pace.factor("unified", LOAD) == pytest.approx(1.4)


def test_what_was_never_tried_may_be_tried() -> None:
    """Kinds that are slower than predicted say nothing of others; if one is faster, so may they all be."""
    slow, fast = (watched(StepPace(), "lockstep", ratio) for ratio in (1.3, 0.8))
    kinds: tuple[Kind, ...] = ("unified", "plain")
    assert [slow.factor(kind, LOAD) for kind in kinds] == [1, 1]
    assert [fast.factor(kind, LOAD) for kind in kinds] == pytest.approx([0.8, 0.8])


def test_each_kind_has_its_own() -> None:
    pace = watched(watched(StepPace(), "lockstep", 1.3), "unified", 0.9)
    assert pace.factor("lockstep", LOAD) == pytest.approx(1.3)
    assert pace.factor("unified", LOAD) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("load", "holds"),
    [
        (replace(LOAD, num_requests=140), True),
        (replace(LOAD, num_requests=160), False),
        (replace(LOAD, num_requests=60), False),
        (replace(LOAD, context=7900.0), True),
        (replace(LOAD, context=1900.0), False),
    ],
)
def test_it_holds_near_the_load_that_it_was_measured_at(load: Load, holds: bool) -> None:
    pace = watched(StepPace(), "lockstep", 1.3)
    assert (pace.factor("lockstep", load) > 1) == holds
    assert watched(pace, "lockstep", 1.2, load=load).factor("lockstep", load) == pytest.approx(1.2)


def test_prompts_and_pauses_are_left_out() -> None:
    pace = StepPace()
    for _ in range(3):
        watched(pace, "unified", 1.3, num_looks=6)
        pace.observe("unified", replace(LOAD, prompt_rows=1.0), 0.02, 0.02)
    watched(pace, "unified", 100.0)
    watched(pace, "plain", 0.01)
    assert [pace.factor(kind, LOAD) for kind in ("plain", "unified", "lockstep")] == [1, 1, 1]
