"""What a slot's numbers say."""

from __future__ import annotations

import pytest
import torch

from sparsespec.plugins.phase import Phase
from sparsespec.runtime.device.row_logprobs import row_logprobs
from sparsespec.runtime.device.torch_results import listed_logprobs, slot_result
from sparsespec.runtime.results import SlotResult
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduled_step import ScheduledRows


def block(slot: int, logprobs: int | None) -> ScheduledRows:
    """Of four rows."""
    return ScheduledRows(slot, 0, Phase.VERIFY, 4, 0, 4, 4, False, SamplingParams(logprobs=logprobs).needs)


def results(wanted: list[int | None], tokens: list[int]) -> list[SlotResult]:
    """Of a block for each, all of which got the same tokens and were told of 20 alternatives at each row."""
    blocks = [block(slot, each) for slot, each in enumerate(wanted)]
    logits = torch.randn(4 * len(blocks), 50, generator=torch.Generator().manual_seed(0))
    found = row_logprobs(logits, torch.zeros(len(logits), dtype=torch.long))
    told = listed_logprobs(blocks, found.tensors)
    numbers = (len(tokens), 3, len(tokens) - 1, 90, 80, 7)
    return [slot_result(row, numbers, [*tokens, 0, 0], told, 4 * row.slot) for row in blocks]


def test_counts_and_the_tokens_that_joined() -> None:
    (result,) = results([None], [5, 6])
    assert result == SlotResult(Phase.VERIFY, (5, 6), 3, 1, kv_len=90, recent_start=80, num_chosen=7, logprobs=())


def test_each_slot_is_told_as_many_alternatives_as_it_asked_for() -> None:
    found = results([2, None, 0, 20], [5, 6])
    assert [[len(each.top) for each in result.logprobs] for result in found] == [[2, 2], [], [0, 0], [20, 20]]
    assert [[each.token_id for each in result.logprobs] for result in found] == [[5, 6], [], [5, 6], [5, 6]]
    best = [each.top[0][1] for result in (found[0], found[3]) for each in result.logprobs]
    assert best == pytest.approx(
        [max(logprob for _, logprob in each.top) for each in (*found[0].logprobs, *found[3].logprobs)]
    )


def test_nothing_is_listed_where_nobody_asks() -> None:
    assert listed_logprobs([block(0, None)], ()) is None
