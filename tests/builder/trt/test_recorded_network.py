"""The recorder refuses what a strongly typed TensorRT refuses, and the interpreter's numbers are those of its types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pytest
import torch

from interpreter_values import Value, rounded, value_of
from network_interpreter import interpret, run
from recorded_network import Network, RecordingTensorRT, Tensor
from recorded_ops import Dequantize, Op, Quantize
from recorded_types import DataType, ElementWiseOperation, MatrixOperation, Refused, TensorRTPhase
from sparsespec.builder.errors import EngineError
from sparsespec.builder.trt.attention_layers import PluginLayers
from sparsespec.plugins.pillar_attention.inputs import PillarAttentionParams, ScorePlanes, StepInputs

FLOAT, HALF, BF16, FP8, INT32 = DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.FP8, DataType.INT32
SUM = ElementWiseOperation.SUM
NONE, TRANSPOSE = MatrixOperation.NONE, MatrixOperation.TRANSPOSE
PARAMS = PillarAttentionParams(num_heads=6, num_kv_heads=2, head_dim=8, page_size=4)


@dataclass(frozen=True)
class Tensors:
    """A network's inputs."""

    network: Network
    x: Tensor  # FLOAT [-1, 4]
    half: Tensor  # HALF [-1, 4]
    rows: Tensor  # INT32 [-1]
    weight: Tensor  # FLOAT [3, 4]
    scale: Tensor  # HALF []


def some_inputs(network: Network) -> Tensors:
    return Tensors(
        network=network,
        x=network.add_input("x", FLOAT, (-1, 4)),
        half=network.add_input("half", HALF, (-1, 4)),
        rows=network.add_input("rows", INT32, (-1,)),
        weight=network.add_input("weight", FLOAT, (3, 4)),
        scale=network.add_input("scale", HALF, ()),
    )


def reshape(network: Network, tensor: Tensor, *dims: int) -> None:
    network.add_shuffle(tensor).reshape_dims = dims


def reshape_after_use(network: Network, tensor: Tensor) -> None:
    layer = network.add_shuffle(tensor)
    network.add_cast(layer.get_output(0), HALF)
    layer.reshape_dims = (4, 3)


def two_names(network: Network, tensor: Tensor) -> None:
    """TensorRT reports an error, and the second layer keeps the name that it had."""
    for _ in range(2):
        network.add_cast(tensor, HALF).name = "cast"


def slice_by(network: Network, tensor: Tensor, shape: Tensor) -> None:
    network.add_slice(tensor, (0, 0), (1, 1), (1, 1)).set_input(2, shape)


REFUSED: list[tuple[str, Callable[[Tensors], object]]] = [
    ("SUM: types", lambda on: on.network.add_elementwise(on.x, on.half, SUM)),
    ("SUM: ranks", lambda on: on.network.add_elementwise(on.x, some_floats(on.network, 4), SUM)),
    ("SUM: ranks of HALF", lambda on: on.network.add_elementwise(on.half, on.scale, SUM)),
    ("sizes 3 and 2", lambda on: on.network.add_elementwise(on.weight, some_floats(on.network, 2, 4), SUM)),
    ("indices are FLOAT", lambda on: on.network.add_gather(on.x, on.x, 0)),
    ("no axis 2", lambda on: on.network.add_gather(on.x, on.rows, 2)),
    ("inner sizes 4 and 3", lambda on: on.network.add_matrix_multiply(on.x, NONE, on.weight, NONE)),
    ("matmul: types", lambda on: on.network.add_matrix_multiply(on.half, NONE, on.weight, TRANSPOSE)),
    ("cast: FP8", lambda on: on.network.add_cast(on.x, FP8)),
    ("slice: index 4 of 4", lambda on: on.network.add_slice(on.x, (0, 1), (1, 4), (1, 1))),
    ("slice: its shape is no", lambda on: slice_by(on.network, on.x, on.weight)),
    ("shuffle", lambda on: reshape(on.network, on.weight, 3, 5)),
    ("after another layer", lambda on: reshape_after_use(on.network, on.weight)),
    ("two layers: cast", lambda on: two_names(on.network, on.x)),
    ("two tensors: x", lambda on: on.network.add_input("x", FLOAT, (1,))),
    ("marked already", lambda on: on.network.mark_output(on.x)),
    ("dimension 1 is 4", lambda on: on.x.set_dimension_name(1, "hidden")),
    ("scale HALF", lambda on: on.network.add_quantize(on.x, on.scale, FP8)),
    ("expected one number", lambda on: on.network.add_quantize(on.x, some_floats(on.network, 4), FP8)),
    ("quantize: to HALF", lambda on: on.network.add_quantize(on.half, on.scale, HALF)),
    ("dequantize: FLOAT", lambda on: on.network.add_dequantize(on.x, on.scale, HALF)),
    ("tensor of another network", lambda on: Network().add_cast(on.x, HALF)),
]


def some_floats(network: Network, *shape: int) -> Tensor:
    return network.add_constant(shape, np.ones(shape, np.float32)).get_output(0)


@pytest.mark.parametrize(("message", "write"), REFUSED, ids=[message for message, _ in REFUSED])
def test_refused(message: str, write: Callable[[Tensors], object]) -> None:
    on = some_inputs(Network())
    with pytest.raises(Refused, match=message):
        write(on)


def test_shapes_with_sizes_that_are_not_known() -> None:
    network = Network()
    on = some_inputs(network)
    product = network.add_matrix_multiply(on.x, NONE, on.weight, TRANSPOSE).get_output(0)
    assert (product.dtype, product.shape) == (FLOAT, (-1, 3))
    divisor = network.add_constant((2,), np.array([1, 2], np.int64)).get_output(0)
    whole = network.add_shape(on.x).get_output(0)
    half = network.add_elementwise(whole, divisor, ElementWiseOperation.FLOOR_DIV).get_output(0)
    layer = network.add_slice(on.x, (0, 2), (1, 2), (1, 1))
    layer.set_input(2, half)
    assert layer.get_output(0).shape == (-1, 2)
    assert network.add_gather(on.weight, on.rows, 0).get_output(0).shape == (-1, 4)
    quantized = network.add_quantize(on.half, on.scale, FP8).get_output(0)
    assert network.add_dequantize(quantized, on.scale, HALF).get_output(0).dtype == HALF


@pytest.mark.parametrize("planes", get_args(ScorePlanes))
def test_the_creator_reads_fields(planes: ScorePlanes) -> None:
    trt = RecordingTensorRT()
    kinds = trt.PluginFieldType
    numbers = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 8, "page_size": 4}
    fields = [trt.PluginField(name, np.array([value], np.int32), kinds.INT32) for name, value in numbers.items()]
    fields.append(trt.PluginField("score_planes", np.frombuffer(planes.encode(), np.int8), kinds.CHAR))
    creator = trt.get_plugin_registry().get_creator("PillarAttention", "1", "")
    made = creator.create_plugin("", trt.PluginFieldCollection(fields), TensorRTPhase.BUILD)
    defaults = {
        "kv_cache_dtype": "auto",
        "rms_norm_eps": 1e-6,
        "qk_norm": 0,
        "aliased_io": 1,
        "score_normalizer": "draft",
    }
    assert dict(made.fields) == {**numbers, "score_planes": planes, **defaults}
    for wrong in (fields[1:], [*fields, fields[0]], [*fields, trt.PluginField("x", fields[0].data, kinds.INT32)]):
        assert creator.create_plugin("", trt.PluginFieldCollection(wrong), TensorRTPhase.BUILD) is None
    assert trt.get_plugin_registry().get_creator("PillarAttention", "2", "") is None


def test_plugin_layers_tell_of_refused_fields() -> None:
    params = PillarAttentionParams(num_heads=6.0, num_kv_heads=2, head_dim=8, page_size=4)
    network = Network()
    rows = network.add_input("rows", INT32, (-1,))
    with pytest.raises(EngineError, match=r"PillarPlan refuses its fields .*6\.0"):
        PluginLayers(RecordingTensorRT(), aliased_io=True).insert_plan(network, params, StepInputs(*[rows] * 13))


def test_plugin_inputs_are_checked() -> None:
    network = Network()
    rows = network.add_input("rows", INT32, (3,))
    with pytest.raises(Refused, match=r"PillarPlan: phase: INT32\[3\]"):
        PluginLayers(RecordingTensorRT(), aliased_io=True).insert_plan(network, PARAMS, StepInputs(*[rows] * 13))


def test_run_time_sizes_are_checked() -> None:
    network = Network()
    on = some_inputs(network)
    network.mark_output(network.add_gather(on.weight, on.rows, 0).get_output(0))
    recording = network.recording()
    given = {
        "x": Value(np.zeros((2, 4), np.float32), FLOAT),
        "half": Value(np.zeros((2, 4), np.float16), HALF),
        "rows": Value(np.array([2, 0], np.int32), INT32),
        "weight": Value(np.arange(12, dtype=np.float32).reshape(3, 4), FLOAT),
        "scale": Value(np.array(1, np.float16), HALF),
    }
    (gathered,) = interpret(recording, given).values()
    assert gathered.array.tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    for name, array in (
        ("rows", np.zeros(2, np.float32)),
        ("x", np.zeros((2, 3), np.float32)),
        ("rows", np.array([3], np.int32)),
    ):
        wrong = Value(array, INT32 if array.dtype == np.int32 else FLOAT)
        with pytest.raises(Refused):
            interpret(recording, {**given, name: wrong})


@pytest.mark.parametrize(("dtype", "like"), [(BF16, torch.bfloat16), (HALF, torch.float16), (FP8, torch.float8_e4m3fn)])
def test_rounding(dtype: DataType, like: torch.dtype) -> None:
    """To nearest, ties to even; FP8 saturates."""
    rng = np.random.default_rng(0)
    exact = np.float32(rng.normal(size=4096) * np.exp2(rng.integers(-9, 9, 4096)))
    ties = np.float32([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 17, 19, -0.0, 0.0, np.nan])
    values = np.concatenate([exact, ties, np.float32([] if dtype == FP8 else [3e38, np.inf, -np.inf])])
    clamped = np.clip(values, -448, 448) if dtype == FP8 else values
    expected = torch.from_numpy(clamped).to(like).float().numpy()
    np.testing.assert_array_equal(rounded(values, dtype).astype(np.float32), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_quantized_numbers(dtype: torch.dtype) -> None:
    x = torch.randn(7, 5, dtype=torch.float32).mul(100).to(dtype)
    scale = torch.tensor(0.25)
    (quantized,) = run(Quantize(FP8), [value_of(x), value_of(scale)])
    expected = (x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    np.testing.assert_array_equal(quantized.array, expected.float().numpy())
    back = one(Dequantize(value_of(x).dtype), quantized, value_of(scale))
    np.testing.assert_array_equal(back.array, value_of((expected.float() * scale).to(dtype)).array)


def one(op: Op, *operands: Value) -> Value:
    (result,) = run(op, operands)
    return result
