from __future__ import annotations

import pytest
import torch

from sparsespec.runtime.device.host_copies import HostCopies


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_comes_is_what_was_there(device: str) -> None:
    """Whatever is written to the tensors afterwards."""
    numbers, none = torch.arange(6, device=device).view(2, 3), torch.zeros(0, 4, device=device)
    copies = HostCopies([numbers, none])
    numbers.zero_()
    found, empty = copies.wait()
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (found.device.type, empty.shape, empty.dtype) == ("cpu", (0, 4), torch.float32)
