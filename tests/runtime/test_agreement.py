from __future__ import annotations

import random

import pytest

from sparsespec.runtime.agreement import Agreement, AgreementByReads
from sparsespec.runtime.cost_model import DraftReads

OWN, HALF, DOUBLE = DraftReads(0.05, 64), DraftReads(0.025, 64), DraftReads(0.1, 64)
LONG = 8192.0


def test_an_agreement_follows_what_is_accepted() -> None:
    own = Agreement(keep=0.9, guess=0.6)
    assert own.share == 0.6
    for _ in range(60):
        own.observe(8, 8)
    assert own.share > 0.99
    for _ in range(120):
        own.observe(8, 0)
    assert own.share < 0.01


@pytest.mark.parametrize("true", [0.2, 0.6, 0.9])
def test_an_agreement_counts_no_draft_after_the_first_that_fails(true: float) -> None:
    """A guess that is right stays right, over all outcomes with their chances."""
    moves = []
    for accepted in range(9):
        chance = true**accepted * (1 - true if accepted < 8 else 1)
        own = Agreement(keep=1.0, guess=true)
        own.observe(8, accepted)
        moves.append(chance * (own.share - true) * (8 + min(accepted + 1, 8)))
    assert sum(moves) == pytest.approx(0, abs=1e-9)


def test_drafts_that_read_more_fail_less() -> None:
    """As measured with SmolLM2-135M at 4k: 1 - 0.9552, 0.9721 and 0.9818 at 2.5%, 5% and 10% of the context."""
    known = AgreementByReads(0.9721, OWN)
    assert known.of(HALF, LONG) == pytest.approx(0.9552, abs=0.002)
    assert known.of(DOUBLE, LONG) == pytest.approx(0.9818, abs=0.002)
    assert known.of(OWN, LONG) == known.share == pytest.approx(0.9721)


@pytest.mark.parametrize("context", [0.0, 10.0, 600.0])
def test_where_budgets_are_the_same_so_is_the_agreement(context: float) -> None:
    """Of short contexts both read min_budget, or everything."""
    assert AgreementByReads(0.8, OWN).of(HALF, context) == pytest.approx(0.8)


def verify(known: AgreementByReads, agreement: float, count: int) -> None:
    chances = random.Random(count)
    for _ in range(count):
        accepted = 0
        while accepted < 8 and chances.random() < agreement:
            accepted += 1
        known.observe(8, accepted)


def test_a_change_is_expected_to_do_what_it_did_before() -> None:
    """Reading half costs this text much more than others: known after it was tried, wherever agreement moves then."""
    known = AgreementByReads(0.85, OWN)
    assert not known.settled
    verify(known, 0.9, 400)
    assert known.settled
    guess = known.of(HALF, LONG)
    assert guess == pytest.approx(1 - 0.1 * 2**0.7, abs=0.03)
    known.change(HALF, LONG)
    assert known.share == pytest.approx(guess)
    assert not known.settled
    verify(known, 0.6, 400)
    assert known.settled
    assert known.share == pytest.approx(0.6, abs=0.05)
    assert known.of(OWN, LONG) == pytest.approx(0.9, abs=0.04)
    known.change(OWN, LONG)
    verify(known, 0.9, 100)
    verify(known, 0.95, 400)
    assert known.of(HALF, LONG) == pytest.approx(0.8, abs=0.06)


def test_one_change_corrects_no_more_than_sixteenfold() -> None:
    known = AgreementByReads(0.99, OWN)
    known.change(HALF, LONG)
    verify(known, 0.0, 400)
    assert known.of(OWN, LONG) == pytest.approx(1 - 1 / 2**0.7 / 16, abs=0.01)
