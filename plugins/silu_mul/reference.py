"""SiluMul in torch: the definition that the CUDA kernel is tested against, and the op on the CPU."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, [num_rows, intermediate_size], of gate_up [num_rows, 2 * intermediate_size], gate first.

    silu is computed in fp32, or in fp64 for fp64 inputs, and rounded to the type of gate_up before the product.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up
