"""The workloads of benchmarks/kernels.py, which need no GPU: steps are valid, and bytes are those that they read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernel_cases import (
    BLOCK_ROWS,
    SPECULATION,
    Case,
    DraftList,
    Geometry,
    Target,
    Workload,
    kv_bytes,
    peer_bytes,
    pillar_list,
    prefill_flops,
    recent_start,
    row_bytes,
    share_of_slots,
    shipped_list,
)
from kernel_groups import MODELS, QWEN3_8B, drafts, groups, in_fp8, mixed, plain, prefill, some_verify, verify
from kernel_steps import KvPools, draft_tokens, pool_rows, prepare, random_pillars, select_inputs, step_inputs
from sparsespec.plugins.phase import Phase

SMALL = Geometry(batch=11, context=400, num_heads=6, num_kv_heads=2, head_dim=64, num_layers=3)
LONG_LIST = DraftList(staying=20, moving=9, lookups=5, recent=30)
WORKLOADS = {
    "plain": plain(SMALL),
    "verify": verify(SMALL),
    "verify with scores": verify(SMALL, scored=True),
    "some verify": some_verify(SMALL, scored=True),
    "draft": drafts(SMALL),
    "long draft": drafts(SMALL, LONG_LIST),
    "mixed": mixed(SMALL),
    "prefill": Workload(Geometry(1, 48, 6, 2, 64, room=100), (Phase.PREFILL,), num_rows=70),
    "first prefill": Workload(Geometry(1, 0, 6, 2, 64, room=100), (Phase.PREFILL,), num_rows=70),
}
CASES = [case for group in groups() for cases in group.sets for case in cases]


def each_workload() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)


def test_bytes_by_hand() -> None:
    """Of Qwen3-8B's shape: 96 requests of 8192 tokens, 8 KV heads of 128 numbers; 11 of 96 slots are every ninth."""
    token = 2 * 128 * 2
    assert kv_bytes(plain(QWEN3_8B)) == 96 * 8 * 8193 * token
    assert kv_bytes(verify(QWEN3_8B)) == 96 * 8 * 8201 * token
    assert kv_bytes(drafts(QWEN3_8B)) == 96 * 8 * (409 + 17) * token
    assert kv_bytes(mixed(QWEN3_8B)) == (11 * 8201 + 85 * 426) * 8 * token
    assert kv_bytes(some_verify(QWEN3_8B, scored=True)) == 11 * 8 * 8201 * token
    assert kv_bytes(in_fp8(verify(QWEN3_8B))) == 96 * 8 * 8201 * 2 * 128
    row = 2 * (32 + 16 + 32) * 128 + token * 8
    pages = 96 * 512 * 4
    assert row_bytes(verify(QWEN3_8B)) == 96 * 9 * row + pages
    assert row_bytes(mixed(QWEN3_8B)) == (11 * 9 + 85) * row + 85 * 8 * 409 * 4 + pages
    assert row_bytes(some_verify(QWEN3_8B, scored=True)) == 11 * (9 * row + 512 * 4)
    assert row_bytes(in_fp8(plain(QWEN3_8B))) == 96 * (row - token * 4) + pages
    assert Case("verify", verify(QWEN3_8B)).all_bytes == kv_bytes(verify(QWEN3_8B)) + 96 * 9 * row + pages
    assert Case("scored", mixed(QWEN3_8B)).bytes == kv_bytes(mixed(QWEN3_8B)) + 11 * 2 * 8 * 8201 * 2
    assert Case("bare", some_verify(QWEN3_8B, scored=False)).bytes == 11 * 8 * 8201 * token
    assert Case("plan", mixed(QWEN3_8B), "plan").bytes == 0
    selected = Workload(QWEN3_8B, (Phase.VERIFY,) * 96, scored=True, draft=shipped_list(8192))
    assert Case("select", selected, "select").bytes == 96 * 2 * 8 * (8192 - 8 - 102) * 2
    assert peer_bytes("BatchAttention", mixed(QWEN3_8B)) == 96 * 8 * 8201 * token
    assert peer_bytes("sparse", drafts(QWEN3_8B)) == peer_bytes("sparse, CUDA cores", drafts(QWEN3_8B))
    assert peer_bytes("sparse", drafts(QWEN3_8B)) == 96 * 8 * 426 * token


def test_operations_by_hand() -> None:
    assert prefill_flops(Workload(SMALL, (Phase.PREFILL,), num_rows=3)) == 4 * 6 * 64 * (401 + 402 + 403)
    assert prefill_flops(verify(SMALL)) == 0


@each_workload()
def test_bytes_are_those_of_the_tokens_that_a_step_reads(workload: Workload) -> None:
    step = step_inputs(workload)
    rows = step.row_start.diff()
    num_keys = (step.kv_len + step.draft_index + rows) * (rows > 0)
    listed = step.num_staying + step.num_moving + step.num_lookups + num_keys - step.recent_start
    tokens = int(listed.where(step.phase == Phase.DRAFT, num_keys).sum())
    scores = 2 * int(num_keys.where(step.score_rows > 0, 0).sum())
    geometry = workload.geometry
    assert Case("", workload).bytes == geometry.num_kv_heads * 2 * (2 * geometry.head_dim * tokens + scores)


@each_workload()
def test_steps_are_valid(workload: Workload) -> None:
    step, geometry = step_inputs(workload), workload.geometry
    rows = step.row_start.diff()
    expected = {Phase.DRAFT: 1, Phase.IDLE: 0, Phase.VERIFY: workload.num_rows, Phase.PREFILL: workload.num_rows}
    assert rows.tolist() == [expected[Phase(phase)] for phase in step.phase.tolist()]
    assert int(step.row_start[0]) == 0
    past = step.kv_len + step.draft_index + rows
    assert int(past.max()) <= min(geometry.positions, step.page_table.shape[1] * geometry.page_size)
    assert sorted(step.page_table.flatten().tolist()) == list(range(geometry.pool_shape[0]))
    assert step.rope_table.shape == (geometry.positions, geometry.head_dim)
    assert bool((step.recent_start <= step.kv_len).all())
    assert bool((step.num_lookups <= SPECULATION.max_lookups).all())
    assert int(step.draft_index.max()) < SPECULATION.draft_len
    assert step.lookups.shape == (geometry.batch, SPECULATION.max_lookups)
    integers = (*vars(step).values(),)[:-1]
    assert all(each.dtype == torch.int32 for each in integers if each is not None)
    scored = (step.score_rows > 0).nonzero().flatten()
    assert len(scored) == workload.num_scored
    if workload.scored:
        assert step.score_index is not None
        assert step.score_index[scored].tolist() == list(range(len(scored)))


def test_cached_slots_share_the_pages_of_one_and_layers_a_pool() -> None:
    workload = replace(verify(SMALL), cached=True)
    pools = tuple(torch.zeros(SMALL.pool_shape) for _ in range(2))
    prepared = prepare(workload, KvPools(pools))
    table = prepared.step.page_table
    assert table.shape == (SMALL.batch, SMALL.slot_pages)
    assert bool((table == table[0]).all())
    assert len(table[0].unique()) == SMALL.slot_pages
    assert all(layer.kv_pool is pools[0] for layer in prepared.layers)


@pytest.mark.parametrize("name", ["draft", "long draft", "mixed"])
def test_pillars_ascend_before_the_recent_tokens(name: str) -> None:
    workload = WORKLOADS[name]
    draft, pillars = workload.draft, random_pillars(workload)
    assert pillars.shape == (SMALL.batch, SMALL.num_kv_heads, draft.staying + draft.moving)
    for part in (pillars[..., : draft.staying], pillars[..., draft.staying :]):
        assert bool((part.diff(dim=-1) > 0).all())
    assert int(pillars.min()) >= 0
    assert int(pillars.max()) < recent_start(workload)
    every = [len(set(each)) for each in pillars.flatten(0, 1).tolist()]
    assert every == [draft.staying + draft.moving] * len(every)


def test_a_draft_of_the_paper_reads_each_of_its_tokens_once() -> None:
    workload = drafts(SMALL)
    prepared = prepare(workload, pools_of(SMALL))
    tokens = draft_tokens(prepared, prepared.layers[0])
    assert tokens.shape == (SMALL.batch, SMALL.num_kv_heads, 20 + 17)
    assert all(len(set(each)) == 37 for each in tokens.flatten(0, 1).tolist())
    own = prepared.step.kv_len + prepared.step.draft_index
    assert tokens[..., -1].tolist() == own[:, None].expand(-1, SMALL.num_kv_heads).tolist()


def pools_of(geometry: Geometry) -> KvPools:
    """Every number of a row is the row's own."""
    rows = geometry.pool_bytes // geometry.head_dim // 2
    numbers = torch.arange(rows, dtype=torch.float32)[:, None].expand(-1, geometry.head_dim)
    return KvPools((numbers.reshape(geometry.pool_shape),))


def test_rows_are_the_keys_and_values_of_the_tokens() -> None:
    prepared = prepare(drafts(SMALL, LONG_LIST), pools_of(SMALL))
    layer, step = prepared.layers[1], prepared.step
    tokens = draft_tokens(prepared, layer)
    assert tokens.shape[-1] == LONG_LIST.total
    page = step.page_table[torch.arange(SMALL.batch)[:, None, None], (tokens // 16).long()].long()
    heads = torch.arange(SMALL.num_kv_heads)[:, None]
    found = [layer.kv_pool[page, plane, heads, (tokens % 16).long(), 0] for plane in range(2)]
    assert pool_rows(prepared, tokens).tolist() == torch.stack(found, dim=2).long().tolist()


def test_layers_have_pools_and_pillars_in_turn_and_scores_of_their_own() -> None:
    kv = KvPools(tuple(pools_of(SMALL).pools[0].clone() for _ in range(2)))
    layers = prepare(mixed(SMALL), kv).layers
    assert [layer.kv_pool is kv.pools[index % 2] for index, layer in enumerate(layers)] == [True] * 3
    assert layers[0].pillars is layers[2].pillars
    assert not torch.equal(layers[0].pillars, layers[1].pillars)
    starts = [layer.scores.data_ptr() for layer in layers if layer.scores is not None]
    assert len(set(starts)) == 3


def test_select_has_the_scores_of_all_layers() -> None:
    inputs = select_inputs(WORKLOADS["some verify"])
    assert inputs.scores.shape == (3, 2, 2, SMALL.num_kv_heads, SMALL.positions)
    assert inputs.scored_slot.tolist() == [0, 9]
    assert bool((inputs.scores > 0).any(dim=-1).all())


@pytest.mark.parametrize("context", [geometry.context for geometry in MODELS])
def test_a_shipped_draft_spends_its_budget_besides_the_last_block_and_the_drafts(context: int) -> None:
    shipped = shipped_list(context)
    assert shipped.total == SPECULATION.budget(context) + 8 + 5
    assert min(shipped.staying, shipped.moving, shipped.lookups) > 0
    assert pillar_list(context) == DraftList(staying=int(0.05 * context), moving=0, lookups=0, recent=17)


def test_every_ninth_slot_verifies() -> None:
    phases = share_of_slots(20, Phase.IDLE)
    assert [slot for slot, phase in enumerate(phases) if phase == Phase.VERIFY] == [0, 9, 18]
    assert BLOCK_ROWS == 9


@pytest.mark.parametrize(
    ("target", "enough", "short", "text"),
    [
        (Target("gigabytes_per_s", 3000), 3000.0, 2999.9, ">= 3000 GB/s"),
        (Target("ratio", 2.2), 2.3, 2.1, ">= 2.2x FlashInfer"),
        (Target("relative", 0.06, at_most=True), -0.01, 0.061, "<= 0.06"),
    ],
)
def test_targets(target: Target, enough: float, short: float, text: str) -> None:
    assert target.holds(enough)
    assert not target.holds(short)
    assert target.text == text


def test_every_case_can_be_measured() -> None:
    for group in groups():
        known = [case.name for cases in group.sets for case in cases]
        for cases in group.sets:
            names = [case.name for case in cases]
            assert len(set(names)) == len(names)
            for case in cases:
                assert len(case.workload.phases) == case.workload.geometry.batch
                assert case.relation is None or all(name in known for name in case.relation.to)
                assert all(target.figure != "relative" or case.relation for target in case.targets)
                assert all(target.figure != "ratio" or case.peers for target in case.targets)


def test_pools_are_far_larger_than_a_cache_and_fit_an_80_gb_card() -> None:
    for case in CASES:
        geometry = case.workload.geometry
        with_fp8 = 1.5 if case.workload.kv_dtype == "fp8" else 1
        assert geometry.num_pools * geometry.pool_bytes * with_fp8 < 45e9
        assert geometry.num_pools >= 4
        assert not case.drafts_only or geometry.num_pools * kv_bytes(case.workload) > 4 * 50e6


def test_groups_have_the_issues_cases() -> None:
    assert [group.name for group in groups()] == [
        "decode",
        "draft",
        "verify",
        "scores",
        "small",
        "prefill",
        "growth",
        "shapes",
        "fp8",
        "mix",
        "cached",
    ]
    by_name = {group.name: [case for cases in group.sets for case in cases] for group in groups()}
    assert [case.workload.geometry.batch for case in by_name["growth"][::2]] == [384, 192, 96, 48, 24, 12, 6]
    assert len(by_name["small"]) == 12
    assert [case.workload.geometry.num_heads // 8 for case in by_name["shapes"][:15:3]] == [4, 5, 6, 7, 8]
    assert prefill(8192).geometry.positions >= 8192 + 2048
