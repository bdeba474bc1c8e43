"""The op vocabulary: everything the decoder may say, lowered to torch or to TensorRT.

A lowering gives each op a meaning for its own tensor handle (a torch.Tensor, a TensorRT ITensor). No op looks at
values, so a network can be written down once and run for any batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from sparsespec.plugins.pillar_attention.inputs import AttentionInputs, PillarAttentionParams, StepInputs

TensorT = TypeVar("TensorT")


@dataclass(frozen=True)
class Fp8Weight(Generic[TensorT]):
    """A weight of float8_e4m3fn, and what it and its input are scaled by."""

    weight: TensorT  # [out, in] float8_e4m3fn: the weight divided by weight_scale
    weight_scale: TensorT  # () float32
    input_scale: TensorT  # () float32
    row_scale: TensorT | None  # [out] float32: what else each row of the weight is divided by; None: nothing


class Ops(Protocol[TensorT]):
    """One lowering of the vocabulary."""

    def embedding(self, table: TensorT, token_ids: TensorT) -> TensorT:
        """Rows [num_rows, hidden] of table [vocab, hidden]."""

    def rms_norm(self, x: TensorT, weight: TensorT, eps: float) -> TensorT:
        """x / rms(x) * weight over the last axis; the mean square is taken in fp32 or fp64."""

    def linear(self, x: TensorT, weight: TensorT, bias: TensorT | None = None) -> TensorT:
        """x [n, in] times the transpose of weight [out, in], plus bias [out]."""

    def linear_fp8(self, x: TensorT, weight: Fp8Weight[TensorT], bias: TensorT | None = None) -> TensorT:
        """`linear` of what float8_e4m3fn leaves of its operands; the result has the type of x.

        x [n, in], in fp32, is divided by input_scale, cut off at +-448, and rounded to float8_e4m3fn, half to even.
        The operands are what this gives, times input_scale, and weight [out, in], times weight_scale. Each column of
        their product is multiplied by its row_scale, where there are any, in fp32 or fp64: before it is rounded to the
        type of x or, where a backend's product comes out rounded, after. Then bias is added.
        """

    def add_rms_norm(self, hidden: TensorT, delta: TensorT, weight: TensorT, eps: float) -> tuple[TensorT, TensorT]:
        """hidden + delta, of their type, and `rms_norm` of that sum.

        The sum may be written over hidden: what comes later takes the sum, and nothing takes hidden any more.
        """

    def linear_add_rms_norm(
        self, hidden: TensorT, x: TensorT, weight: TensorT, norm_weight: TensorT, eps: float
    ) -> tuple[TensorT, TensorT]:
        """`add_rms_norm` of hidden and `linear(x, weight)`, which a backend may leave in parts that the sum adds up."""

    def silu_mul(self, gate_up: TensorT) -> TensorT:
        """silu(gate) * up for gate_up [n, 2 * intermediate], gate first."""

    def gather_rows(self, x: TensorT, rows: TensorT) -> TensorT:
        """x[rows]: [len(rows), ...]."""

    def pillar_plan(self, params: PillarAttentionParams, step: StepInputs[TensorT]) -> TensorT:
        """plugins.pillar_plan: the step's attention divided into even parts, once for all layers."""

    def pillar_attention(self, params: PillarAttentionParams, inputs: AttentionInputs[TensorT]) -> TensorT:
        """plugins.pillar_attention: the one consumer of the KV pool."""
