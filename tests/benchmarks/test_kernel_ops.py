"""Our ops as steps, on the references where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from kernel_cases import DraftList, Geometry, Workload
from kernel_groups import drafts, in_fp8, mixed, verify
from kernel_ops import PoolStore, fp8_error, num_timed_layers, our_step, quantized
from kernel_steps import KvPools, prepare
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.device.attention_ops import ReferenceAttention

SMALL = Geometry(batch=10, context=200, num_heads=4, num_kv_heads=2, head_dim=64, num_layers=5)
OPS = ReferenceAttention()


@pytest.mark.parametrize("workload", [mixed(SMALL), in_fp8(mixed(SMALL))], ids=["bf16", "fp8"])
def test_a_step_appends_and_scores_in_every_layer(workload: Workload) -> None:
    store = PoolStore()
    prepared = prepare(workload, store.pools(SMALL, workload.kv_dtype))
    before = [layer.kv_pool.view(torch.uint8).clone() for layer in prepared.layers]
    our_step(OPS, "attention", prepared)()
    for layer, old in zip(prepared.layers, before, strict=True):
        assert layer.scores is not None
        assert bool((layer.scores != 0).any(dim=(1, 2, 3)).all())
        changed = (layer.kv_pool.view(torch.uint8) != old).any(dim=-1)
        assert int(changed.sum()) == 2 * SMALL.num_kv_heads * (2 * 9 + 8)
    assert prepared.layers[0].kv_pool.dtype == (torch.bfloat16 if workload.kv_dtype == "bf16" else torch.float8_e4m3fn)


def test_select_fills_the_pillars_of_all_layers() -> None:
    lists = DraftList(staying=12, moving=4, lookups=0, recent=30)
    workload = Workload(SMALL, (Phase.VERIFY,) * SMALL.batch, scored=True, draft=lists)
    prepared = prepare(workload, PoolStore().pools(SMALL, "bf16"))
    work = our_step(OPS, "select", prepared)
    work()
    assert num_timed_layers("select", SMALL) == num_timed_layers("attention", SMALL) == 5
    assert num_timed_layers("plan", SMALL) == 1


def test_a_store_keeps_the_pools_of_one_geometry() -> None:
    store = PoolStore()
    first = store.pools(SMALL, "bf16")
    assert len(first.pools) == SMALL.num_pools == 5
    assert store.pools(SMALL, "fp8").kv_scale is not None
    assert store.pools(SMALL, "bf16") is first
    store.pools(Geometry(2, 100, 4, 2, 64, num_layers=4), "bf16")
    assert store.pools(SMALL, "bf16") is not first


def test_fp8_pools_hold_the_same_numbers_to_three_bits() -> None:
    exact = PoolStore().pools(SMALL, "bf16")
    rounded = quantized(KvPools(tuple(pool * 1000 for pool in exact.pools)))
    assert rounded.kv_scale is not None
    assert rounded.kv_scale.shape == (2, SMALL.num_kv_heads)
    found = rounded.pools[0].float() * rounded.kv_scale[:, :, None, None]
    expected = exact.pools[0].float() * 1000
    step = rounded.kv_scale[:, :, None, None] * 2.0**-9
    assert bool(((found - expected).abs() <= (expected.abs() * 0.07).maximum(step)).all())
    assert max(float(pool.float().abs().max()) for pool in rounded.pools) == 448


@pytest.mark.parametrize("workload", [drafts(SMALL), verify(SMALL)], ids=["draft", "verify"])
def test_error_of_fp8(workload: Workload) -> None:
    assert 0.005 < fp8_error(OPS, in_fp8(workload), PoolStore()) < 0.1
