"""Our ops as steps to time: PillarPlan and a model's layers of PillarAttention, or PillarSelect for all layers."""

from __future__ import annotations

import gc
from dataclasses import replace

import torch
from torch import Tensor

from kernel_cases import Geometry, KvDtype, Op, Workload
from kernel_steps import KvPools, PreparedStep, prepare, select_inputs
from kernel_timing import Work
from sparsespec.plugins.pillar_attention.inputs import AttentionInputs
from sparsespec.runtime.device.attention_ops import AttentionOps

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
CHUNK_PAGES = 4096  # converted at once


class PoolStore:
    """Random pools of the geometry that was asked for last, in bf16, and the same in FP8 once that is wanted."""

    def __init__(self) -> None:
        self._kept: dict[KvDtype, KvPools] = {}

    def pools(self, geometry: Geometry, kv_dtype: KvDtype) -> KvPools:
        """On torch's default device. Those of another geometry are given back first."""
        if "bf16" in self._kept and self._kept["bf16"].pools[0].shape != geometry.pool_shape:
            self.clear()
        if "bf16" not in self._kept:
            made = (torch.randn(geometry.pool_shape, dtype=torch.bfloat16) for _ in range(geometry.num_pools))
            self._kept["bf16"] = KvPools(tuple(made))
        if kv_dtype not in self._kept:
            self._kept[kv_dtype] = quantized(self._kept["bf16"])
        return self._kept[kv_dtype]

    def clear(self) -> None:
        """Give the memory back."""
        self._kept.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def quantized(kv: KvPools) -> KvPools:
    """In float8_e4m3fn, by one scale for the keys and one for the values of each head, so that nothing is cut off."""
    largest = torch.stack([pool.abs().amax(dim=(0, 3, 4)) for pool in kv.pools]).amax(dim=0)
    scale = largest.float() / FP8_MAX
    return KvPools(tuple(_to_fp8(pool, scale) for pool in kv.pools), scale)


def _to_fp8(pool: Tensor, scale: Tensor) -> Tensor:
    converted = torch.empty_like(pool, dtype=torch.float8_e4m3fn)
    for source, target in zip(pool.split(CHUNK_PAGES), converted.split(CHUNK_PAGES), strict=True):
        target.copy_((source.float() / scale[:, :, None, None]).clamp_(-FP8_MAX, FP8_MAX))
    return converted


def our_step(ops: AttentionOps, op: Op, prepared: PreparedStep) -> Work:
    """What is timed: `num_timed_layers` layers."""
    if op == "plan":
        return lambda: ops.plan(prepared.params, prepared.step)
    if op == "select":
        inputs = select_inputs(prepared.workload)
        return lambda: ops.select(inputs)

    def work() -> None:
        plan = ops.plan(prepared.params, prepared.step)
        for layer in prepared.layers:
            ops.attention(prepared.params, AttentionInputs(prepared.qkv, None, layer, prepared.step, plan))

    return work


def num_timed_layers(op: Op, geometry: Geometry) -> int:
    """What the time of a step is divided by; a plan is one for all layers, and told as it is."""
    return 1 if op == "plan" else geometry.num_layers


def fp8_error(ops: AttentionOps, workload: Workload, store: PoolStore) -> float:
    """Norm of an FP8 layer's difference to the bf16 layer of the same tokens, as a share of the norm of the latter."""
    exact = KvPools(store.pools(workload.geometry, "bf16").pools[:1])
    rounded = quantized(exact)  # anew: what was timed has written other tokens to either
    prepared = prepare(replace(workload, kv_dtype="bf16"), exact)
    layer = prepared.layers[0]
    plan = ops.plan(prepared.params, prepared.step)
    outputs = [
        ops.attention(prepared.params, AttentionInputs(prepared.qkv, None, each, prepared.step, plan)).float()
        for each in (layer, replace(layer, kv_pool=rounded.pools[0], kv_scale=rounded.kv_scale))
    ]
    return float((outputs[1] - outputs[0]).norm() / outputs[0].norm())
