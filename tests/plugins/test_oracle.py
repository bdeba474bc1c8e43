"""The oracle against PillarAttention that is told what each draft row would choose, worked out in plain numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from naive_attention import NaiveSlot, NaiveStep, assert_near, naive_attention, paged, random_step
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import AttentionInputs, PillarAttentionParams, ScorePlanes
from sparsespec.plugins.pillar_attention.oracle import oracle_attention
from sparsespec.plugins.pillar_attention.reference import pillar_attention

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TOLERANCE = 1e-12


def params_of(group: int, num_kv_heads: int, score_planes: ScorePlanes = "mean") -> PillarAttentionParams:
    return PillarAttentionParams(group * num_kv_heads, num_kv_heads, head_dim=8, page_size=4, score_planes=score_planes)


def draft(kv_len: int, draft_index: int, recent_start: int, num_staying: int) -> NaiveSlot:
    return NaiveSlot(Phase.DRAFT, 1, kv_len, draft_index, recent_start, num_staying)


def verified_alone(part: NaiveSlot) -> NaiveSlot:
    """A draft row as one that reads everything and is scored."""
    return NaiveSlot(Phase.VERIFY, 1, part.positions.start, score_rows=1) if part.phase == Phase.DRAFT else part


def own_choice(step: NaiveStep) -> dict[tuple[int, int], list[int]]:
    """(slot, KV head) -> pillars of each draft row: the best before recent_start by its own full attention."""
    scores = naive_attention(replace(step, slots=tuple(map(verified_alone, step.slots)))).scores
    return {
        (slot, head): sorted(np.argsort(-scores[slot][0, head, : part.recent_start])[: part.num_staying].tolist())
        for slot, part in enumerate(step.slots)
        if part.phase == Phase.DRAFT
        for head in range(step.params.num_kv_heads)
    }


def laid_out(step: NaiveStep, device: str, seed: int) -> AttentionInputs[Tensor]:
    """As the op takes it, with all that a slot has cached in the pool: the oracle looks at everything."""
    dense = replace(step, slots=tuple(replace(part, recent_start=0) for part in step.slots))
    made = paged(dense, torch.float64, device, seed)
    recent_start = torch.tensor([part.recent_start for part in step.slots], dtype=torch.int32, device=device)
    return replace(made, step=replace(made.step, recent_start=recent_start))


@st.composite
def slots(draw: st.DrawFn) -> NaiveSlot:
    kv_len = draw(st.integers(0, 30))
    phase = draw(st.sampled_from([Phase.DRAFT, Phase.DRAFT, Phase.VERIFY, Phase.PREFILL, Phase.IDLE]))
    if phase == Phase.DRAFT:
        recent_start = draw(st.sampled_from([0, kv_len]) | st.integers(0, kv_len))
        return draft(kv_len, draw(st.integers(0, 4)), recent_start, draw(st.integers(0, recent_start)))
    if phase == Phase.IDLE:
        return NaiveSlot(phase, 0, kv_len)
    num_rows = draw(st.integers(1, 5))
    return NaiveSlot(phase, num_rows, kv_len, score_rows=draw(st.sampled_from([0, num_rows])))


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(
    params=st.builds(params_of, st.integers(1, 3), st.integers(1, 2), st.sampled_from(["mean", "diagonal", "rows"])),
    parts=st.lists(slots(), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
    qk_norm=st.booleans(),
    fp8_cache=st.booleans(),
)
def test_each_draft_row_reads_its_own_best(
    device: str, params: PillarAttentionParams, parts: list[NaiveSlot], seed: int, qk_norm: bool, fp8_cache: bool
) -> None:
    """Outputs, K and V, what drafts leave, and the scores of the verified rows beside them."""
    step = random_step(params, tuple(parts), torch.float64, seed, qk_norm, fp8_cache)
    told, free = laid_out(step, device, seed), laid_out(step, device, seed)
    for (slot, head), chosen in own_choice(step).items():
        told.layer.pillars[slot, head, : len(chosen)] = torch.tensor(chosen, dtype=torch.int32, device=device)
    expected = pillar_attention(params, told)
    found = oracle_attention(params, free)
    assert_near(found, expected.cpu(), TOLERANCE)
    assert free.layer.pillars.tolist() == told.layer.pillars.tolist()
    assert_near(free.layer.kv_pool, told.layer.kv_pool.cpu().double(), TOLERANCE)
    assert_near(free.layer.draft_lse, told.layer.draft_lse.cpu(), TOLERANCE)
    assert_near(free.layer.scores, told.layer.scores.cpu(), TOLERANCE)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kv_len", "draft_index", "recent_start"), [(20, 0, 17), (20, 3, 20), (9, 2, 1), (5, 1, 0)])
def test_as_many_pillars_as_tokens_are_dense_attention(
    kv_len: int, draft_index: int, recent_start: int, device: str
) -> None:
    parts = (draft(kv_len, draft_index, recent_start, recent_start), draft(12, 1, 10, 2))
    step = random_step(params_of(2, 2), parts, torch.float64, seed=4)
    dense = naive_attention(replace(step, slots=tuple(map(verified_alone, parts)))).output
    made = laid_out(step, device, seed=4)
    found = oracle_attention(step.params, made).cpu()
    assert_near(found[:1], torch.from_numpy(dense[:1]), TOLERANCE)
    assert (found[1] - torch.from_numpy(dense[1])).abs().max() > 1e-3  # few pillars are not
