"""TensorRT's own layers in the place of the plugins, with their inputs and outputs: for builders without plugins.

They compute nothing meaningful, but every input counts, so that no builder may leave one out.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from numpy.typing import NDArray

from sparsespec.builder.trt.api import DataType, INetworkDefinition, ITensor, TensorRT
from sparsespec.builder.trt.attention_layers import AttentionOutputs
from sparsespec.plugins.pillar_attention.inputs import AttentionInputs, PillarAttentionParams, StepInputs
from sparsespec.plugins.plugin_signature import attention_inputs, plan_inputs

PLAN_HEAD = 66688


class NativeLayers:
    """builder.trt.attention_layers.AttentionLayers without plugins."""

    def __init__(self, trt: TensorRT) -> None:
        self._trt = trt
        self._kept: list[NDArray[np.generic]] = []

    def insert_plan(
        self, network: INetworkDefinition, params: PillarAttentionParams, step: StepInputs[ITensor]
    ) -> ITensor:
        """[66688 + B] int32."""
        total = self._total(network, plan_inputs(step), self._trt.DataType.INT32, rank=1)
        head = self._constant(network, np.zeros(PLAN_HEAD, np.int32))
        plan = network.add_concatenation([head, step.phase]).get_output(0)  # type: ignore[attr-defined]
        return self._sum(network, plan, total)

    def insert_attention(
        self, network: INetworkDefinition, params: PillarAttentionParams, inputs: AttentionInputs[ITensor]
    ) -> AttentionOutputs:
        """The queries as they are, plus the sum of everything else."""
        others = attention_inputs(params, inputs)[1:]
        total = self._total(network, others, inputs.qkv.dtype, rank=2)
        output = self._sum(network, self._queries(network, params, inputs.qkv), total)
        layer = inputs.layer
        updated = [
            network.add_identity(each).get_output(0)  # type: ignore[attr-defined]
            for each in (layer.kv_pool, layer.draft_lse, *(() if layer.scores is None else (layer.scores,)))
        ]
        return AttentionOutputs(output, updated[0], updated[1], updated[2] if layer.scores is not None else None)

    def _queries(self, network: INetworkDefinition, params: PillarAttentionParams, qkv: ITensor) -> ITensor:
        """The first columns; the rows are known at run time only."""
        op, width = self._trt.ElementWiseOperation, params.num_heads * params.head_dim
        whole = network.add_shape(qkv).get_output(0)
        rows = network.add_elementwise(whole, self._constant(network, np.array([1, 2**40])), op.FLOOR_DIV)
        shape = self._sum(network, rows.get_output(0), self._constant(network, np.array([0, width])))
        layer = network.add_slice(qkv, (0, 0), (1, width), (1, 1))
        layer.set_input(2, shape)
        return layer.get_output(0)

    def _total(self, network: INetworkDefinition, tensors: list[ITensor], dtype: DataType, rank: int) -> ITensor:
        """The sum of all elements of all tensors, as a tensor of so many axes."""
        sums = [self._one(network, tensor, dtype, rank) for tensor in tensors]
        return reduce(lambda a, b: self._sum(network, a, b), sums)

    def _one(self, network: INetworkDefinition, tensor: ITensor, dtype: DataType, rank: int) -> ITensor:
        if tensor.dtype == self._trt.DataType.FP8:
            one = self._constant(network, np.array(1, np.float32))
            tensor = network.add_dequantize(tensor, one, self._trt.DataType.FLOAT).get_output(0)
        every_axis = (1 << len(tensor.shape)) - 1
        total = network.add_reduce(tensor, self._trt.ReduceOperation.SUM, every_axis, False)  # type: ignore[attr-defined]
        layer = network.add_shuffle(network.add_cast(total.get_output(0), dtype).get_output(0))
        layer.reshape_dims = (1,) * rank
        return layer.get_output(0)

    def _sum(self, network: INetworkDefinition, a: ITensor, b: ITensor) -> ITensor:
        return network.add_elementwise(a, b, self._trt.ElementWiseOperation.SUM).get_output(0)

    def _constant(self, network: INetworkDefinition, values: NDArray[np.generic]) -> ITensor:
        self._kept.append(values)
        return network.add_constant(values.shape, values).get_output(0)
