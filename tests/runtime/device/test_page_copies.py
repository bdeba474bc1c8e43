"""Pages of all layers to host memory and back, on the CPU: any pages, in any order, in parts of any size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsespec.builder.errors import InputError
from sparsespec.runtime.device import page_copies
from sparsespec.runtime.device.page_copies import PageCopies
from sparsespec.runtime.scheduled_step import PageMove, ScheduledStep

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
NUM_PAGES, NUM_HOST_PAGES = 12, 20
PAGES = (7, 2, 3, 4, 11, 0, 9)
HOST_PAGES = (5, 6, 7, 19, 0, 2, 1)
BACK = (1, 2, 7, 8, 0, 5, 3)


def make_pool(dtype: torch.dtype) -> Tensor:
    """Three layers of pages whose bytes are all different enough."""
    size = (3, NUM_PAGES, 2, 1, 4, 2 * dtype.itemsize)
    return torch.randint(0, 100, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).view(dtype)


def bits(tensor: Tensor) -> Tensor:
    return tensor.clone().view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("staged", [1, 3, 100])
def test_what_left_comes_back(dtype: torch.dtype, staged: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(dtype)
    before = bits(pool)
    monkeypatch.setattr(page_copies, "_STAGING_BYTES", staged * pool[:, 0].numel() * dtype.itemsize)
    copies = PageCopies(pool, NUM_HOST_PAGES)
    copies.enqueue(ScheduledStep(0, (), (), (), offloads=(PageMove(0, PAGES, HOST_PAGES),)))
    assert bits(pool).equal(before)
    pool.view(torch.uint8).fill_(255)
    copies.enqueue(ScheduledStep(1, (), (), (), restores=(PageMove(0, BACK, HOST_PAGES),)))
    after = bits(pool)
    for page, back in zip(PAGES, BACK, strict=True):
        assert after[:, back].equal(before[:, page])
    others = [page for page in range(NUM_PAGES) if page not in BACK]
    assert (after[:, others] == 255).all()


def test_two_requests_pass_each_other_in_one_step() -> None:
    """Who leaves is copied before who comes."""
    pool = make_pool(torch.float32)
    before = pool.clone()
    copies = PageCopies(pool, NUM_HOST_PAGES)
    copies.enqueue(ScheduledStep(0, (), (), (), offloads=(PageMove(0, (4, 5), (1, 2)),)))
    away, back = PageMove(1, (6, 7), (3, 0)), PageMove(0, (6, 7), (1, 2))
    copies.enqueue(ScheduledStep(1, (), (), (), offloads=(away,), restores=(back,)))
    assert pool[:, 6:8].equal(before[:, 4:6])
    copies.enqueue(ScheduledStep(2, (), (), (), restores=(PageMove(1, (0, 1), (3, 0)),)))
    assert pool[:, :2].equal(before[:, 6:8])


def test_host_memory_that_is_not_there() -> None:
    with pytest.raises(InputError, match="lower kv_cache_host_memory_bytes"):
        PageCopies(make_pool(torch.float32), 2**50)
