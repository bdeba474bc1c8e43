"""The op vocabulary in TensorRT's layers: Ops for the tensors of a strongly typed INetworkDefinition.

Rounds where the torch lowering rounds: norms and SiLU are computed in fp32 and rounded to the model's type once. Only
biases are added to rounded products, where cuBLAS rounds their sum alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsespec.builder.ops import Fp8Weight
from sparsespec.builder.trt.api import (
    ActivationType,
    DataType,
    ElementWiseOperation,
    ILayer,
    INetworkDefinition,
    ITensor,
    TensorRT,
)
from sparsespec.builder.trt.attention_layers import AttentionLayers
from sparsespec.builder.trt.engine_io import UPDATED
from sparsespec.plugins.pillar_attention.inputs import AttentionInputs, PillarAttentionParams, StepInputs

_LAST_AXIS = 1 << 1  # of two


class TensorRTOps:
    """builder.ops.Ops that writes a network down. Layers are called after the weight that they are about."""

    def __init__(self, trt: TensorRT, network: INetworkDefinition, attention: AttentionLayers) -> None:
        self._trt = trt
        self._network = network
        self._attention = attention
        self._constants: list[NDArray[np.generic]] = []  # TensorRT reads them while it builds

    def embedding(self, table: ITensor, token_ids: ITensor) -> ITensor:
        """See Ops."""
        # A tied table is multiplied with as well, and layers have names of their own.
        return _named(self._network.add_gather(table, token_ids, 0), f"{table.name} rows")

    def rms_norm(self, x: ITensor, weight: ITensor, eps: float) -> ITensor:
        """See Ops. Elementwise: TensorRT's normalisation layers subtract the mean."""
        op = self._trt.ElementWiseOperation
        exact = self._cast(x, self._trt.DataType.FLOAT)
        square = self._elementwise(exact, exact, op.PROD)
        mean = self._network.add_reduce(square, self._trt.ReduceOperation.AVG, _LAST_AXIS, True).get_output(0)
        shifted = self._elementwise(mean, self._constant(np.array([[eps]], np.float32)), op.SUM)
        root = self._network.add_unary(shifted, self._trt.UnaryOperation.SQRT).get_output(0)
        normed = self._cast(self._elementwise(exact, root, op.DIV), x.dtype)
        return _named(self._network.add_elementwise(normed, self._as_row(weight), op.PROD), weight.name)

    def linear(self, x: ITensor, weight: ITensor, bias: ITensor | None = None) -> ITensor:
        """See Ops."""
        return self._plus_bias(self._product(x, weight, weight.name), bias)

    def linear_fp8(self, x: ITensor, weight: Fp8Weight[ITensor], bias: ITensor | None = None) -> ITensor:
        """See Ops. Operands of the type of x, from which TensorRT makes a product of FP8 ones."""
        rounded = self._network.add_quantize(x, weight.input_scale, self._trt.DataType.FP8).get_output(0)
        operand = self._dequantized(rounded, weight.input_scale, x.dtype)
        other = self._dequantized(weight.weight, weight.weight_scale, x.dtype)
        product = self._product(operand, other, weight.weight.name)
        if weight.row_scale is not None:
            product = self._columns_times(product, weight.row_scale)
        return self._plus_bias(product, bias)

    def add_rms_norm(self, hidden: ITensor, delta: ITensor, weight: ITensor, eps: float) -> tuple[ITensor, ITensor]:
        """See Ops. Layers of their own, which are TensorRT's to fuse."""
        total = self._sum(hidden, delta)
        return total, self.rms_norm(total, weight, eps)

    def linear_add_rms_norm(
        self, hidden: ITensor, x: ITensor, weight: ITensor, norm_weight: ITensor, eps: float
    ) -> tuple[ITensor, ITensor]:
        """See Ops."""
        return self.add_rms_norm(hidden, self.linear(x, weight), norm_weight, eps)

    def silu_mul(self, gate_up: ITensor) -> ITensor:
        """See Ops."""
        op = self._trt.ElementWiseOperation
        gate, up = self._halves(gate_up)
        exact = self._cast(gate, self._trt.DataType.FLOAT)
        gated = self._elementwise(exact, self._activation(exact, self._trt.ActivationType.SIGMOID), op.PROD)
        return self._elementwise(self._cast(gated, gate_up.dtype), up, op.PROD)

    def gather_rows(self, x: ITensor, rows: ITensor) -> ITensor:
        """See Ops."""
        # Of several tensors, and layers have names of their own.
        return _named(self._network.add_gather(x, rows, 0), f"{rows.name} of {x.name}")

    def pillar_plan(self, params: PillarAttentionParams, step: StepInputs[ITensor]) -> ITensor:
        """See Ops."""
        return self._attention.insert_plan(self._network, params, step)

    def pillar_attention(self, params: PillarAttentionParams, inputs: AttentionInputs[ITensor]) -> ITensor:
        """See Ops. What is updated in place leaves the network: nothing else in it may read those tensors."""
        made = self._attention.insert_attention(self._network, params, inputs)
        layer = inputs.layer
        for before, after in (
            (layer.kv_pool, made.kv_pool),
            (layer.draft_lse, made.draft_lse),
            (layer.scores, made.scores),
        ):
            if before is not None and after is not None:
                after.name = before.name + UPDATED
                self._network.mark_output(after)
        return made.output

    def _product(self, x: ITensor, weight: ITensor, name: str) -> ITensor:
        op = self._trt.MatrixOperation
        return _named(self._network.add_matrix_multiply(x, op.NONE, weight, op.TRANSPOSE), name)

    def _plus_bias(self, product: ITensor, bias: ITensor | None) -> ITensor:
        return product if bias is None else self._sum(product, self._as_row(bias))

    def _sum(self, a: ITensor, b: ITensor) -> ITensor:
        return self._elementwise(a, b, self._trt.ElementWiseOperation.SUM)

    def _columns_times(self, product: ITensor, scale: ITensor) -> ITensor:
        """product [n, m] times scale [m] FLOAT, of the type of product."""
        exact = self._cast(product, self._trt.DataType.FLOAT)
        scaled = self._elementwise(exact, self._as_row(scale), self._trt.ElementWiseOperation.PROD)
        return self._cast(scaled, product.dtype)

    def _dequantized(self, x: ITensor, scale: ITensor, dtype: DataType) -> ITensor:
        return self._network.add_dequantize(x, scale, dtype).get_output(0)

    def _halves(self, x: ITensor) -> tuple[ITensor, ITensor]:
        """x [n, 2 m] as two [n, m]."""
        width = x.shape[1] // 2
        whole = self._network.add_shape(x).get_output(0)
        divisor = self._constant(np.array([1, 2], np.int64))
        half = self._elementwise(whole, divisor, self._trt.ElementWiseOperation.FLOOR_DIV)
        return self._columns(x, 0, width, half), self._columns(x, width, width, half)

    def _columns(self, x: ITensor, first: int, width: int, shape: ITensor) -> ITensor:
        layer = self._network.add_slice(x, (0, first), (1, width), (1, 1))
        layer.set_input(2, shape)  # instead of (1, width): the number of rows is known at run time only
        return layer.get_output(0)

    def _as_row(self, vector: ITensor) -> ITensor:
        """[m] as [1, m], which broadcasts over rows."""
        layer = self._network.add_shuffle(vector)
        layer.reshape_dims = (1, vector.shape[0])
        return layer.get_output(0)

    def _cast(self, x: ITensor, dtype: DataType) -> ITensor:
        return x if x.dtype == dtype else self._network.add_cast(x, dtype).get_output(0)

    def _elementwise(self, a: ITensor, b: ITensor, op: ElementWiseOperation) -> ITensor:
        return self._network.add_elementwise(a, b, op).get_output(0)

    def _activation(self, x: ITensor, kind: ActivationType) -> ITensor:
        return self._network.add_activation(x, kind).get_output(0)

    def _constant(self, values: NDArray[np.generic]) -> ITensor:
        self._constants.append(values)
        return self._network.add_constant(values.shape, values).get_output(0)


def _named(layer: ILayer, name: str) -> ITensor:
    layer.name = name
    return layer.get_output(0)
