"""AddRmsNorm in torch: the definition that the CUDA kernel is tested against, and the op on the CPU."""

from __future__ import annotations

from torch import Tensor

from sparsespec.plugins.pillar_attention.reference import rms_norm


def add_rms_norm(hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """hidden + delta, rounded to their type, and `rms_norm` of that; both [num_rows, hidden_size].

    hidden and delta [num_rows, hidden_size], weight [hidden_size]. Here hidden stays as it was; the plugin updates it
    in place.
    """
    total = hidden + delta
    return total, rms_norm(total, weight, eps)
