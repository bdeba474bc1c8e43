"""The benchmark of products in parts: what it prints, and that it needs a GPU."""

from __future__ import annotations

import pytest
import torch

from sparsespec.builder.errors import InputError
from split_products import PRODUCTS, Bench, SplitConfig, Timed


def test_a_way_that_does_not_exist_is_left_out() -> None:
    line = Timed("some", 8, (3.0, None, 2.5, None), 3).line()
    assert line.split(": ")[1] == "  3.00      -   2.50      -; the runtime takes 3"


def test_rows_are_checked() -> None:
    with pytest.raises(InputError, match="rows"):
        SplitConfig(rows=(1, 0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_is_asked_for() -> None:
    with pytest.raises(InputError, match="CUDA device"):
        Bench()


@pytest.mark.gpu
def test_every_way_is_timed() -> None:
    timed = Bench().time(PRODUCTS[-1], 8)
    assert [each is not None and each > 0 for each in timed.microseconds] == [True] * 4
    assert timed.chosen == 4
