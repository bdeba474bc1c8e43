"""The network as TensorRT gets it, run by a numpy interpreter that knows nothing of the lowering."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest

from engine_steps import MODEL, engine_spec, random_step, torch_outputs
from interpreter_values import DTYPES
from network_checks import errors, interpreted, recorded, tolerance
from recorded_network import Network, RecordingTensorRT
from recorded_ops import Plugin
from recorded_types import Refused
from sparsespec.builder.build_config import DType
from sparsespec.builder.model_config import Family
from sparsespec.builder.trt.attention_layers import PluginLayers
from sparsespec.builder.trt.config import TensorRTConfig
from sparsespec.builder.trt.engine_io import UPDATED, Axis, EngineKind, EngineTensor
from sparsespec.builder.trt.network import EngineSpec, write_network
from sparsespec.plugins.pillar_attention.inputs import ScoreNormalizer, ScorePlanes

every_kind = pytest.mark.parametrize("kind", get_args(EngineKind))
every_family = pytest.mark.parametrize("family", get_args(Family))


def check_outputs(spec: EngineSpec, seed: int) -> float:
    """Logits, and everything that is updated in place, are the torch lowering's. Returns the error of logits."""
    step = random_step(spec, seed)
    found = errors(interpreted(recorded(spec), step), torch_outputs(step))
    print(f"relative error, of logits {found['logits']:.1e}, of all outputs {max(found.values()):.1e}")
    assert max(found.values()) <= tolerance(spec), found
    return found["logits"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@every_kind
@every_family
def test_outputs_are_the_torch_lowerings(
    family: Family, kind: EngineKind, dtype: DType, seed: int, record_property: Callable[[str, object], None]
) -> None:
    error = check_outputs(engine_spec(kind, dtype, family), seed)
    record_property(f"TensorRT calls in numpy against torch, relative error of logits, {dtype}", error)


@every_kind
@every_family
def test_tied_embeddings(family: Family, kind: EngineKind) -> None:
    check_outputs(engine_spec(kind, "float32", family, model=replace(MODEL, tie_word_embeddings=True)), seed=0)


@pytest.mark.parametrize("normalizer", get_args(ScoreNormalizer))
@pytest.mark.parametrize("planes", get_args(ScorePlanes))
def test_every_kind_of_scores(planes: ScorePlanes, normalizer: ScoreNormalizer) -> None:
    config = TensorRTConfig(score_planes=planes, score_normalizer=normalizer)
    check_outputs(engine_spec("verify", "float32", config=config), seed=0)


def test_any_step(fresh_seed: int) -> None:
    check_outputs(engine_spec("verify", "float32", "qwen3"), fresh_seed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_kind
@every_family
def test_inputs_and_outputs_are_those_of_the_list(family: Family, kind: EngineKind, dtype: DType) -> None:
    spec = engine_spec(kind, dtype, family)
    recording = recorded(spec)
    assert [declaration(each) for each in spec.io.inputs] == [
        (tensor.name, tensor.type.dtype, tensor.type.shape, tensor.dimension_names)
        for tensor in (recording.tensors[number] for number in recording.inputs)
    ]
    outputs = [recording.tensors[number] for number in recording.outputs]
    assert sorted(declaration(each)[:3] for each in spec.io.outputs) == sorted(
        (tensor.name, tensor.type.dtype, tensor.type.shape) for tensor in outputs
    )


def declaration(tensor: EngineTensor) -> tuple[str, object, tuple[int, ...], tuple[tuple[int, str], ...]]:
    """Name, type, shape and names of dimensions. Axes of one size have one name."""
    axes = [(index, extent) for index, extent in enumerate(tensor.shape) if isinstance(extent, Axis)]
    names = tuple((index, f"{axis.size} + {axis.plus}" if axis.plus else axis.size) for index, axis in axes)
    dtype = {str(each).removeprefix("torch."): known for each, known in DTYPES.items()}[tensor.dtype]
    return tensor.name, dtype, tensor.declared, names


@pytest.mark.parametrize("tied", [False, True])
@every_kind
@every_family
def test_every_input_is_consumed(family: Family, kind: EngineKind, tied: bool) -> None:
    recording = recorded(engine_spec(kind, "bfloat16", family, model=replace(MODEL, tie_word_embeddings=tied)))
    idle = [recording.tensors[number].name for number in recording.inputs if not recording.consumers(number)]
    assert not idle


@every_kind
@every_family
def test_only_its_attention_takes_what_is_updated_in_place(family: Family, kind: EngineKind) -> None:
    """Else TensorRT copies it, and neither consumer sees what the other one wrote."""
    recording = recorded(engine_spec(kind, "bfloat16", family))
    names = ("kv_pool", "draft_lse", *(("scores",) if kind == "verify" else ()))
    for layer in range(MODEL.num_layers):
        consumers = []
        for place, name in enumerate(names, start=1):
            (consumer,) = recording.consumers(recording.number(f"layers.{layer}.{name}"))
            updated = recording.number(f"layers.{layer}.{name}{UPDATED}")
            assert consumer.outputs[place] == updated
            assert recording.outputs.count(updated) == 1
            assert recording.consumers(updated) == []
            consumers.append(consumer)
        assert all(each is consumers[0] for each in consumers)
        assert isinstance(consumers[0].op, Plugin)
        assert consumers[0].op.name == "PillarAttention"
        qkv = recording.consumers(recording.number(f"layers.{layer}.qkv"))
        assert [call.name for call in qkv] == [f"layers.{layer}.qkv"]


def test_one_plan_serves_all_layers() -> None:
    recording = recorded(engine_spec("verify", "bfloat16"))
    plugins = [call for call in recording.calls if isinstance(call.op, Plugin)]
    assert [call.op.name for call in plugins] == ["PillarPlan", *["PillarAttention"] * MODEL.num_layers]
    assert [call.inputs[16] for call in plugins[1:]] == [plugins[0].outputs[0]] * MODEL.num_layers


def test_draft_engine_has_no_scores_and_gives_all_logits() -> None:
    recording = recorded(engine_spec("draft", "bfloat16", "qwen3"))
    names = [tensor.name.rpartition(".")[2] for tensor in recording.tensors]
    assert not [name for name in names if name in ("scores", "score_index", "logit_rows")]
    fields = [dict(call.op.fields) for call in recording.calls if isinstance(call.op, Plugin)]
    assert [each["score_planes"] for each in fields[1:]] == ["none"] * MODEL.num_layers


def test_fields_of_the_plugins() -> None:
    recording = recorded(engine_spec("verify", "bfloat16", "qwen3", TensorRTConfig(score_normalizer="exact")))
    plan, *attention = [dict(call.op.fields) for call in recording.calls if isinstance(call.op, Plugin)]
    assert plan == {"num_heads": 6, "num_kv_heads": 2, "head_dim": 8}
    assert (
        attention
        == [
            {
                **plan,
                "page_size": 4,
                "kv_cache_dtype": "auto",
                "rms_norm_eps": pytest.approx(0.03),
                "qk_norm": 1,
                "score_planes": "diagonal",
                "score_normalizer": "exact",
                "aliased_io": 1,
            }
        ]
        * MODEL.num_layers
    )


def test_constants_live_as_long_as_what_write_network_returns() -> None:
    trt, network = RecordingTensorRT(), Network()
    kept = write_network(trt, network, PluginLayers(trt, aliased_io=True), engine_spec("draft", "bfloat16"))
    network.recording()
    del kept
    with pytest.raises(Refused, match="memory of a constant"):
        network.recording()
