"""Products in parts: how many, and that they add up."""

from __future__ import annotations

import pytest
import torch

from sparsespec.plugins.limits import MAX_PARTS, MAX_SPLIT_HIDDEN_SIZE
from sparsespec.runtime.device.split_products import count_parts, linear_parts

H200 = 132


@pytest.mark.parametrize(
    ("num_rows", "weight_shape", "num_parts"),
    [
        (1, (4096, 4096), 2),  # Qwen3-8B, which docs/kernels.md has the times of
        (96, (4096, 12288), 2),
        (192, (4096, 12288), 2),
        (256, (4096, 12288), 2),
        (257, (4096, 12288), 1),  # two blocks of rows keep a GPU busy
        (32, (576, 576), 3),  # SmolLM2-135M: 576 is 9 times 64
        (32, (576, 1536), 4),
        (512, (576, 1536), 4),
        (4096, (576, 1536), 1),
        (1, (8192, 8192), 1),  # columns alone keep it busy
        (1, (64, 320), 1),  # short sums
        (1, (64, 384), 2),
        (1, (64, 1000), 1),
        (0, (576, 1536), 4),
    ],
)
def test_parts_on_an_h200(num_rows: int, weight_shape: tuple[int, int], num_parts: int) -> None:
    assert count_parts(num_rows, weight_shape, H200) == num_parts


@pytest.mark.parametrize("in_size", [64, 192, 576, 1536, 4096, 14336])
@pytest.mark.parametrize("out_size", [64, 576, MAX_SPLIT_HIDDEN_SIZE, MAX_SPLIT_HIDDEN_SIZE + 64])
def test_parts_are_what_add_rms_norm_takes(in_size: int, out_size: int) -> None:
    for num_multiprocessors in (0, 1, 20, 132, 10000):
        num_parts = count_parts(7, (out_size, in_size), num_multiprocessors)
        assert 1 <= num_parts <= (MAX_PARTS if out_size <= MAX_SPLIT_HIDDEN_SIZE else 1)
        assert in_size % num_parts == 0


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4])
@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_parts_add_up_to_the_product(num_rows: int, num_parts: int, fresh_seed: int) -> None:
    generator = torch.Generator().manual_seed(fresh_seed)
    x, weight = (torch.randn(rows, 768, dtype=torch.float64, generator=generator) for rows in (num_rows, 24))
    parts = linear_parts(x, weight, num_parts)
    assert parts.shape == (num_parts, num_rows, 24)
    assert parts.is_contiguous()
    torch.testing.assert_close(parts.sum(dim=0), x @ weight.T, rtol=1e-12, atol=1e-12)
