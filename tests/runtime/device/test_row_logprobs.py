from __future__ import annotations

import pytest
import torch

from sparsespec.runtime.device.row_logprobs import RowLogprobs, row_logprobs
from sparsespec.runtime.results import TokenLogprobs
from sparsespec.runtime.sampling_params import MAX_LOGPROBS

LOGITS = torch.tensor([[0.0, 2.0, 1.0], [5.0, 5.0, -torch.inf]], dtype=torch.float64)


def test_each_rows_token_and_the_most_likely_ones() -> None:
    """Fewer than MAX_LOGPROBS in a vocabulary of three."""
    found = row_logprobs(LOGITS, torch.tensor([0, 1]))
    expected = LOGITS.log_softmax(dim=1)
    assert found.values[:, 0].tolist() == pytest.approx([float(expected[0, 0]), float(expected[1, 1])])
    assert found.values[0, 1:].tolist() == pytest.approx(expected[0, [1, 2, 0]].tolist())
    assert found.top_ids[0].tolist() == [1, 2, 0]
    assert found.top_ids.shape == (2, 3)


@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_sums_are_kept_in_full(dtype: torch.dtype, kept: torch.dtype) -> None:
    logits = torch.randn(4, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = row_logprobs(logits, torch.arange(4))
    assert found.values.dtype == kept
    assert found.top_ids.shape == (4, MAX_LOGPROBS)
    expected = logits.double().log_softmax(dim=1)
    torch.testing.assert_close(
        found.values[:, 0].double(), expected[torch.arange(4), torch.arange(4)], rtol=0, atol=1e-5
    )


def test_what_is_told_of_consecutive_rows() -> None:
    rows = RowLogprobs(torch.tensor([[-9.0, -9.0], [-1.0, -0.5], [-2.0, -0.25]]), torch.tensor([[7], [8], [9]]))
    listed = rows.listed(1)
    expected = TokenLogprobs(3, -1.0, ((8, -0.5),)), TokenLogprobs(4, -2.0, ((9, -0.25),))
    assert listed.told(1, [3, 4], 1) == listed.told(1, [3, 4], 20) == expected
    assert (
        listed.told(1, [3, 4], 0)
        == rows.listed(0).told(1, [3, 4], 1)
        == (
            TokenLogprobs(3, -1.0, ()),
            TokenLogprobs(4, -2.0, ()),
        )
    )
    assert listed.told(1, [], 1) == ()
