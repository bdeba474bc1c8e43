"""The decoder as a TensorRT network: inputs declared, the one decoder lowered, outputs marked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.decoder import Decoder, DecoderInputs, attention_params
from sparsespec.builder.errors import InputError
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.trt.api import DataType, INetworkDefinition, IOptimizationProfile, ITensor, TensorRT
from sparsespec.builder.trt.attention_layers import AttentionLayers
from sparsespec.builder.trt.config import TensorRTConfig
from sparsespec.builder.trt.engine_io import (
    MAX_ELEMENTS,
    Axis,
    ElementType,
    EngineIo,
    EngineKind,
    EngineTensor,
    Profile,
    engine_io,
    layer_tensor,
)
from sparsespec.builder.trt.lowering import TensorRTOps
from sparsespec.plugins.pillar_attention.inputs import LayerInputs, PillarAttentionParams, StepInputs


@dataclass(frozen=True)
class EngineSpec:
    """Everything that decides what an engine is. build.dtype is concrete."""

    model: ModelConfig
    build: BuildConfig
    config: TensorRTConfig
    kind: EngineKind

    @property
    def io(self) -> EngineIo:
        """What it takes and gives."""
        return engine_io(self.model, self.build, self.config, self.kind)

    @property
    def attention(self) -> PillarAttentionParams:
        """Constants of its attention: draft rows leave no scores."""
        return replace(
            attention_params(self.model, self.build.page_size),
            score_planes="none" if self.kind == "draft" else self.config.score_planes,
            score_normalizer=self.config.score_normalizer,
        )


def write_network(
    trt: TensorRT, network: INetworkDefinition, attention: AttentionLayers, spec: EngineSpec
) -> TensorRTOps:
    """Write the engine's network down. The result owns memory that must live until the engine is built.

    InputError for a tensor of more elements than TensorRT counts.
    """
    network.name = f"sparsespec {spec.kind}"
    io = spec.io
    _check_volumes(io)
    tensors = {tensor.name: _add_input(trt, network, tensor) for tensor in io.inputs}
    ops = TensorRTOps(trt, network, attention)
    weights = {tensor.name: tensors[tensor.name] for tensor in io.weights}
    logits = Decoder[ITensor](ops, spec.model, spec.attention, weights)(_decoder_inputs(spec, tensors))
    logits.name = io.logits.name
    network.mark_output(logits)
    return ops


def write_profile(profile: IOptimizationProfile, io: EngineIo, sizes: Profile) -> None:
    """Give every input whose shape is dynamic its range."""
    for tensor in io.inputs:
        if tensor.is_dynamic:
            least, usual, most = (tensor.at(each) for each in (sizes.least, sizes.usual, sizes.most))
            profile.set_shape(tensor.name, least, usual, most)


def data_type(trt: TensorRT, dtype: ElementType) -> DataType:
    """TensorRT's word for an element type."""
    types = trt.DataType
    return {
        "float32": types.FLOAT,
        "float16": types.HALF,
        "bfloat16": types.BF16,
        "float8_e4m3fn": types.FP8,
        "int32": types.INT32,
        "int64": types.INT64,
    }[dtype]


def _check_volumes(io: EngineIo) -> None:
    for tensor in (*io.inputs, io.logits):
        volume = math.prod(tensor.at(io.profiles[-1].most))
        if volume > MAX_ELEMENTS:
            raise InputError(
                f"{io.kind}.engine: {tensor.name}: expected at most {MAX_ELEMENTS} elements, found {volume}; build "
                "with a smaller max_batch_size, max_draft_len, max_budget or max_seq_len"
            )


def _add_input(trt: TensorRT, network: INetworkDefinition, tensor: EngineTensor) -> ITensor:
    made = network.add_input(tensor.name, data_type(trt, tensor.dtype), tensor.declared)
    for index, extent in enumerate(tensor.shape):
        if isinstance(extent, Axis):
            made.set_dimension_name(index, extent.name)
    return made


def _decoder_inputs(spec: EngineSpec, tensors: Mapping[str, ITensor]) -> DecoderInputs[ITensor]:
    def layer_inputs(layer: int) -> LayerInputs[ITensor]:
        def own(name: str) -> ITensor:
            return tensors[layer_tensor(layer, name)]

        return LayerInputs(
            kv_pool=own("kv_pool"),
            draft_lse=own("draft_lse"),
            pillars=own("pillars"),
            scores=tensors.get(layer_tensor(layer, "scores")),
        )

    return DecoderInputs(
        token_ids=tensors["token_ids"],
        logit_rows=tensors.get("logit_rows"),
        step=_step_inputs(tensors),
        layers=tuple(layer_inputs(layer) for layer in range(spec.model.num_layers)),
    )


def _step_inputs(tensors: Mapping[str, ITensor]) -> StepInputs[ITensor]:
    return StepInputs(
        row_start=tensors["row_start"],
        phase=tensors["phase"],
        draft_index=tensors["draft_index"],
        score_rows=tensors["score_rows"],
        score_index=tensors.get("score_index"),
        kv_len=tensors["kv_len"],
        recent_start=tensors["recent_start"],
        num_staying=tensors["num_staying"],
        num_moving=tensors["num_moving"],
        lookups=tensors["lookups"],
        num_lookups=tensors["num_lookups"],
        page_table=tensors["page_table"],
        rope_table=tensors["rope_table"],
    )
