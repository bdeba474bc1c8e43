"""What FlashInfer is asked to compute, told by a library that only notes it down."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import kernel_peers
from kernel_cases import Geometry, PeerKind
from kernel_groups import drafts, mixed
from kernel_peers import FlashInfer, full_pages, open_flashinfer, sparse_pages
from kernel_steps import KvPools, PreparedStep, draft_tokens, prepare
from kernel_timing import StepGraph

SMALL = Geometry(batch=3, context=100, num_heads=4, num_kv_heads=2, head_dim=64, num_layers=4)


class FakeWrapper:
    """Any of the wrappers."""

    made: list[FakeWrapper]

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.options = (args, kwargs)
        self.plans: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.runs: list[tuple[tuple[Tensor, ...], dict[str, Tensor]]] = []
        self.made.append(self)

    def plan(self, *args: Any, **kwargs: Any) -> None:
        self.plans.append((args, kwargs))

    def run(self, *args: Tensor, **kwargs: Tensor) -> None:
        self.runs.append((args, kwargs))


def fake_library() -> tuple[FlashInfer, list[FakeWrapper]]:
    wrapper = type("Wrapper", (FakeWrapper,), {"made": []})
    library = SimpleNamespace(
        __version__="0.6.13",
        BatchDecodeWithPagedKVCacheWrapper=wrapper,
        BatchPrefillWithPagedKVCacheWrapper=wrapper,
        BatchAttention=wrapper,
    )
    return FlashInfer(library, torch.zeros(1, dtype=torch.uint8)), wrapper.made


def prepared_step() -> PreparedStep:
    """Two pools for four layers; one slot of three verifies."""
    pools = tuple(torch.randn(SMALL.pool_shape, dtype=torch.bfloat16) for _ in range(2))
    return prepare(mixed(SMALL), KvPools(pools))


def test_full_pages_are_those_of_all_tokens() -> None:
    prepared = prepared_step()
    pages = full_pages(prepared)
    assert pages.indptr.tolist() == [0, 7, 14, 21]
    assert pages.last_page_len.tolist() == [109 - 6 * 16] * 3
    assert pages.kv_len.tolist() == [109] * 3
    assert pages.indices.view(3, 7).tolist() == prepared.step.page_table[:, :7].tolist()
    assert pages.indices.dtype == pages.indptr.dtype == pages.last_page_len.dtype == torch.int32


def test_sparse_pages_are_tokens_of_the_draft() -> None:
    prepared = prepare(drafts(SMALL), KvPools((torch.zeros(SMALL.pool_shape),)))
    pages = sparse_pages(prepared)
    tokens = draft_tokens(prepared, prepared.layers[0])[:, 0]
    assert tokens.shape == (3, 5 + 17)
    assert pages.indptr.tolist() == [0, 22, 44, 66]
    assert pages.last_page_len.tolist() == [1] * 3
    table = prepared.step.page_table
    expected = [int(table[slot, token // 16]) * 16 + token % 16 for slot in range(3) for token in tokens[slot].tolist()]
    assert pages.indices.tolist() == expected


@pytest.mark.parametrize(
    ("kind", "rows", "options"),
    [
        ("decode", 3, {"use_tensor_cores": True}),
        ("decode, CUDA cores", 3, {"use_tensor_cores": False}),
        ("fa2", 27, {"backend": "fa2"}),
        ("fa3", 27, {"backend": "fa3"}),
        ("BatchAttention", 27, {"kv_layout": "HND", "device": "cpu"}),
    ],
)
def test_every_layer_reads_its_pool(kind: PeerKind, rows: int, options: dict[str, object]) -> None:
    library, made = fake_library()
    prepared = prepared_step()
    library.step(kind, prepared)()
    (wrapper,) = made
    assert wrapper.options[1] == options
    ((arguments, types),) = wrapper.plans
    assert types["q_data_type"] == types["kv_data_type"] == torch.bfloat16
    assert types.get("causal", False) is (rows == 27)
    head_sizes = (64, 64) if kind == "BatchAttention" else (64,)
    assert arguments[-(3 + len(head_sizes)) :] == (4, 2, *head_sizes, 16)
    assert [args[1].data_ptr() for args, _ in wrapper.runs] == [layer.kv_pool.data_ptr() for layer in prepared.layers]
    for (q, pool), outputs in wrapper.runs:
        assert q.shape == outputs["out"].shape == (rows, 4, 64)
        assert pool.shape == SMALL.pool_shape


def test_sparse_reads_pages_of_one_token() -> None:
    library, made = fake_library()
    library.step("sparse", prepared_step())()
    assert made[0].plans[0][0][-1] == 1
    assert made[0].runs[0][0][1].shape == (3 * 8 * 16, 2, 2, 1, 64)


def test_without_the_library_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> object:
        raise ModuleNotFoundError(f"No module\nnamed {name!r}")

    monkeypatch.setattr(kernel_peers, "import_module", fail)
    assert open_flashinfer() == "ModuleNotFoundError: No module named 'flashinfer'"


def test_what_no_graph_takes_is_enqueued(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> StepGraph:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(kernel_peers, "captured", refuse)
    calls: list[int] = []
    step = kernel_peers.captured_or_eager(lambda: calls.append(1))
    step.replay()
    assert (step.in_graph, calls) == (False, [1, 1])
