"""The workloads of benchmarks/kernels.py, which need no GPU: what is counted is what their steps read."""

from __future__ import annotations

import pytest

from kernels import GEOMETRIES, SPECULATION, Geometry, kv_bytes, mixes, step_inputs
from sparsespec.plugins.phase import Phase

BYTES = 2  # of a bf16 key's or value's element, and of an fp16 score


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)
@pytest.mark.parametrize("place", range(len(mixes(1))))
def test_bytes_are_those_of_the_tokens_that_a_step_reads(geometry: Geometry, place: int) -> None:
    mix = mixes(geometry.batch)[place]
    step = step_inputs(geometry, mix)
    rows = step.row_start.diff()
    num_keys = step.kv_len + step.draft_index + rows
    listed = step.num_staying + step.num_moving + step.num_lookups + num_keys - step.recent_start
    tokens = int(listed.where(step.phase == Phase.DRAFT, num_keys).sum())
    planes = 0 if mix.score_planes == "none" else 2
    scores = int(num_keys.where(step.score_rows > 0, 0).sum()) * planes
    assert kv_bytes(geometry, mix) == geometry.num_kv_heads * BYTES * (2 * geometry.head_dim * tokens + scores)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)
def test_a_draft_spends_its_budget_besides_the_last_block_and_the_drafts(geometry: Geometry) -> None:
    step = step_inputs(geometry, mixes(geometry.batch)[0])
    recent = step.kv_len - SPECULATION.draft_len - step.recent_start
    spent = step.num_staying + step.num_moving + step.num_lookups + recent
    assert spent.unique().tolist() == [SPECULATION.budget(geometry.context)]
    assert step.lookups.shape == (geometry.batch, SPECULATION.max_lookups)
    assert int(step.draft_index.max()) < SPECULATION.draft_len
