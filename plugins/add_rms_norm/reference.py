"""AddRmsNorm in torch: the definition that the CUDA kernel is tested against, and the op on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsespec.plugins.pillar_attention.reference import rms_norm


def add_rms_norm(hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """hidden and the parts of delta, added up and rounded to their type, and `rms_norm` of that.

    Both [num_rows, hidden_size], as hidden; delta [num_parts, num_rows, hidden_size], weight [hidden_size]. Parts are
    added in their order, in fp32 or wider. Here hidden stays as it was; the plugin updates it in place.
    """
    exact = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    for part in delta:
        exact = exact + part
    total = exact.to(hidden.dtype)
    return total, rms_norm(total, weight, eps)
