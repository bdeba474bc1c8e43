"""FlashInfer's wrappers on the same pools: what the kernels are compared with.

Its plan() runs on the host, before anything is timed; it neither rotates nor appends the new tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from kernel_cases import Geometry, PeerKind
from kernel_steps import PreparedStep, draft_tokens
from kernel_timing import StepGraph, Work, captured
from sparsespec.builder.errors import one_line

WORKSPACE_BYTES = 2**29
ERROR_LENGTH = 300  # a failed compilation says far more
LAYOUT = "HND"  # [num_pages, 2, num_kv_heads, page_size, head_dim], as our pools
BF16 = torch.bfloat16


@dataclass(frozen=True)
class PageLists:
    """What a batch of equally long requests reads, as FlashInfer takes it; int32."""

    indptr: Tensor  # [batch + 1]
    indices: Tensor  # pages, request after request
    last_page_len: Tensor  # [batch]
    kv_len: Tensor  # [batch]
    page_size: int


@dataclass(frozen=True)
class Call:
    """What is the same for all layers of a step; run takes q, a pool and where the output goes."""

    run: Callable[[Tensor, Tensor], object]
    rows: int  # of q
    page_size: int


class FlashInfer:
    """The library on the device of the workspace, which its wrappers share."""

    def __init__(self, library: Any, workspace: Tensor) -> None:
        self.version = str(library.__version__)
        self._library = library
        self._workspace = workspace

    def step(self, kind: PeerKind, prepared: PreparedStep) -> Work:
        """Planned; enqueues what all layers of `prepared` would read. Raises whatever the library does."""
        geometry = prepared.workload.geometry
        call = self._planned(kind, prepared)
        shape = (call.rows, geometry.num_heads, geometry.head_dim)
        q = torch.randn(shape, dtype=BF16, device=self._workspace.device)
        pools = [_paged(layer.kv_pool, call.page_size) for layer in prepared.layers]

        def work() -> None:
            for pool in pools:
                call.run(q, pool)

        return work

    def _planned(self, kind: PeerKind, prepared: PreparedStep) -> Call:
        if kind == "decode" or kind == "decode, CUDA cores":
            return self._decode(prepared.workload.geometry, full_pages(prepared), kind == "decode")
        if kind == "sparse" or kind == "sparse, CUDA cores":
            return self._decode(prepared.workload.geometry, sparse_pages(prepared), kind == "sparse")
        if kind == "BatchAttention":
            return self._batch_attention(prepared)
        return self._prefill(kind, prepared)

    def _decode(self, geometry: Geometry, pages: PageLists, tensor_cores: bool) -> Call:
        wrapper = self._library.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace, LAYOUT, use_tensor_cores=tensor_cores
        )
        heads = (geometry.num_heads, geometry.num_kv_heads, geometry.head_dim)
        lists = (pages.indptr, pages.indices, pages.last_page_len)
        wrapper.plan(*lists, *heads, pages.page_size, q_data_type=BF16, kv_data_type=BF16)
        out = self._output(geometry, geometry.batch)
        return Call(lambda q, pool: wrapper.run(q, pool, out=out), len(out), pages.page_size)

    def _prefill(self, backend: str, prepared: PreparedStep) -> Call:
        geometry, pages = prepared.workload.geometry, full_pages(prepared)
        wrapper = self._library.BatchPrefillWithPagedKVCacheWrapper(self._workspace, LAYOUT, backend=backend)
        rows = _row_start(prepared, self._workspace.device)
        lists = (rows, pages.indptr, pages.indices, pages.last_page_len)
        heads = (geometry.num_heads, geometry.num_kv_heads, geometry.head_dim)
        wrapper.plan(*lists, *heads, pages.page_size, causal=True, q_data_type=BF16, kv_data_type=BF16)
        out = self._output(geometry, int(rows[-1]))
        return Call(lambda q, pool: wrapper.run(q, pool, out=out), len(out), pages.page_size)

    def _batch_attention(self, prepared: PreparedStep) -> Call:
        geometry, pages = prepared.workload.geometry, full_pages(prepared)
        wrapper = self._library.BatchAttention(kv_layout=LAYOUT, device=str(self._workspace.device))
        rows = _row_start(prepared, self._workspace.device)
        lists = (rows, pages.indptr, pages.indices, pages.kv_len)
        heads = (geometry.num_heads, geometry.num_kv_heads, geometry.head_dim, geometry.head_dim)
        wrapper.plan(*lists, *heads, pages.page_size, causal=True, q_data_type=BF16, kv_data_type=BF16)
        out = self._output(geometry, int(rows[-1]))
        lse = torch.empty(out.shape[:2], dtype=torch.float32, device=out.device)
        return Call(lambda q, pool: wrapper.run(q, pool, out=out, lse=lse), len(out), pages.page_size)

    def _output(self, geometry: Geometry, rows: int) -> Tensor:
        shape = (rows, geometry.num_heads, geometry.head_dim)
        return torch.empty(shape, dtype=BF16, device=self._workspace.device)


def open_flashinfer() -> FlashInfer | str:
    """Ready to use, or why it is not."""
    try:
        library = import_module("flashinfer")
        return FlashInfer(library, torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda"))
    except Exception as error:  # whatever goes wrong in there, our own figures can do without
        return f"{type(error).__name__}: {one_line(error)[:ERROR_LENGTH]}"


def captured_or_eager(work: Work) -> StepGraph:
    """A launch that no graph can hold is enqueued from the host, which keeps ahead of the GPU where steps are long."""
    try:
        return captured(work)
    except RuntimeError:
        work()
        return StepGraph(work, work, in_graph=False)


def full_pages(prepared: PreparedStep) -> PageLists:
    """Everything, rows of the step included."""
    geometry = prepared.workload.geometry
    tokens = geometry.context + prepared.workload.num_rows
    count = -(-tokens // geometry.page_size)
    pages = prepared.step.page_table[:, :count]
    return _page_lists(pages, geometry.page_size, tokens)


def sparse_pages(prepared: PreparedStep) -> PageLists:
    """The draft's tokens of the first KV head as pages of one token, which all heads share."""
    size = prepared.workload.geometry.page_size
    tokens = draft_tokens(prepared, prepared.layers[0])[:, 0]
    pages = prepared.step.page_table.gather(1, (tokens // size).long()) * size + tokens % size
    return _page_lists(pages, 1, tokens.shape[1])


def _page_lists(pages: Tensor, page_size: int, tokens: int) -> PageLists:
    batch, count = pages.shape
    return PageLists(
        indptr=torch.arange(batch + 1, dtype=torch.int32, device=pages.device) * count,
        indices=pages.flatten().contiguous(),
        last_page_len=pages.new_full((batch,), tokens - (count - 1) * page_size),
        kv_len=pages.new_full((batch,), tokens),
        page_size=page_size,
    )


def _row_start(prepared: PreparedStep, device: torch.device) -> Tensor:
    """The same number of rows for all requests, whatever their phases are."""
    batch = prepared.workload.geometry.batch
    return torch.arange(batch + 1, dtype=torch.int32, device=device) * prepared.workload.num_rows


def _paged(pool: Tensor, page_size: int) -> Tensor:
    """The memory as pages of that size; where that is not the pool's, other tokens lie there, which costs the same."""
    _, planes, heads, _, head_dim = pool.shape
    return pool.view(-1, planes, heads, page_size, head_dim)
