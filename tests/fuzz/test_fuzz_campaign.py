"""The number of inputs, and that a failing one would be seen."""

from __future__ import annotations

import time
from random import Random

import pytest

import hostile_campaign as campaign
from sparsespec.builder.errors import InputError


def test_twenty_thousand_inputs() -> None:
    assert sum(campaign.PLANNED.values()) >= 20_000


def test_every_planned_input_is_tried_and_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(campaign.PLANNED, "target", 50)
    tried: list[int] = []
    campaign.campaign("target", lambda random: tried.append(random.getrandbits(64)))
    assert len(dict.fromkeys(tried)) == 50
    assert tried[7] == campaign.seeded("target", 7).getrandbits(64)


def test_a_failure_names_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(campaign.PLANNED, "target", 3)

    def attempt(random: Random) -> None:
        if random.random() == campaign.seeded("target", 2).random():
            raise KeyError("damage")

    with pytest.raises(AssertionError, match=r"^target: input 2: KeyError: 'damage'"):
        campaign.campaign("target", attempt)


def test_a_hang_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(campaign.PLANNED, "target", 1)
    monkeypatch.setattr(campaign, "LONGEST_SECONDS", 1)
    with pytest.raises(AssertionError, match="input 0: Hang: still busy after 1 s"):
        campaign.campaign("target", lambda _: time.sleep(60))


@pytest.mark.parametrize("message", ["", "x" * 1000])
def test_messages_are_held_to_their_length(message: str) -> None:
    def refuse() -> None:
        raise InputError(message)

    with pytest.raises(AssertionError, match="message"):
        campaign.result_or_error(refuse)
