"""The seam between the network and the project's own ops: layers of TensorRT plugins, and nothing but them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sparsespec.builder.errors import EngineError
from sparsespec.builder.trt.api import INetworkDefinition, IPluginV3, ITensor, TensorRT
from sparsespec.plugins.pillar_attention.inputs import AttentionInputs, PillarAttentionParams, StepInputs
from sparsespec.plugins.plugin_signature import (
    attention_fields,
    attention_inputs,
    plan_fields,
    plan_inputs,
)

PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = ""
PLUGINS = ("PillarPlan", "PillarAttention", "PillarSelect")


@dataclass(frozen=True)
class AttentionOutputs:
    """What PillarAttention gives: its output, and the tensors that it updated in place."""

    output: ITensor  # [num_rows, num_heads * head_dim]
    kv_pool: ITensor
    draft_lse: ITensor
    scores: ITensor | None  # None where score_planes is "none"


class AttentionLayers(Protocol):
    """Puts the project's own ops into a network; everything else in it is TensorRT's own."""

    def insert_plan(
        self, network: INetworkDefinition, params: PillarAttentionParams, step: StepInputs[ITensor]
    ) -> ITensor:
        """PillarPlan: int32, one for all layers of a step."""

    def insert_attention(
        self, network: INetworkDefinition, params: PillarAttentionParams, inputs: AttentionInputs[ITensor]
    ) -> AttentionOutputs:
        """PillarAttention."""


class PluginLayers:
    """AttentionLayers of the plugins in TensorRT's registry."""

    def __init__(self, trt: TensorRT, aliased_io: bool) -> None:
        """aliased_io: whether TensorRT is told which tensors PillarAttention updates in place; see docs/tensorrt.md."""
        self._trt = trt
        self._aliased_io = aliased_io

    def insert_plan(
        self, network: INetworkDefinition, params: PillarAttentionParams, step: StepInputs[ITensor]
    ) -> ITensor:
        """See AttentionLayers."""
        return self._insert(network, "PillarPlan", plan_fields(params), plan_inputs(step), num_outputs=1)[0]

    def insert_attention(
        self, network: INetworkDefinition, params: PillarAttentionParams, inputs: AttentionInputs[ITensor]
    ) -> AttentionOutputs:
        """See AttentionLayers."""
        kind = attention_fields(params, inputs.qk_norm is not None, inputs.layer.kv_scale is not None)
        fields = {**kind, "aliased_io": int(self._aliased_io)}
        has_scores = params.score_planes != "none"
        outputs = self._insert(
            network, "PillarAttention", fields, attention_inputs(params, inputs), num_outputs=3 + has_scores
        )
        output, kv_pool, draft_lse, *scores = outputs
        return AttentionOutputs(output, kv_pool, draft_lse, scores[0] if has_scores else None)

    def _insert(
        self,
        network: INetworkDefinition,
        name: str,
        fields: Mapping[str, int | float | str],
        inputs: Sequence[ITensor],
        num_outputs: int,
    ) -> list[ITensor]:
        layer = network.add_plugin_v3(inputs, [], self._create(name, fields))
        layer.name = f"{name} {inputs[0].name}"
        return [layer.get_output(index) for index in range(num_outputs)]

    def _create(self, name: str, fields: Mapping[str, int | float | str]) -> IPluginV3:
        creator = self._trt.get_plugin_registry().get_creator(name, PLUGIN_VERSION, PLUGIN_NAMESPACE)
        if creator is None:
            raise EngineError(f"TensorRT's registry has no plugin {name}, version {PLUGIN_VERSION}")
        # The collection copies pointers into these: they must live until the plugin has read its fields.
        kept = [self._field(*each) for each in fields.items()]
        plugin = creator.create_plugin(name, self._trt.PluginFieldCollection(kept), self._trt.TensorRTPhase.BUILD)
        if plugin is None:
            raise EngineError(f"plugin {name} refuses its fields {dict(fields)}; what it logged says why")
        return plugin

    def _field(self, name: str, value: int | float | str) -> object:
        kinds = self._trt.PluginFieldType
        if isinstance(value, str):
            return self._trt.PluginField(name, np.frombuffer(value.encode(), np.int8), kinds.CHAR)
        if isinstance(value, float):
            return self._trt.PluginField(name, np.array([value], np.float32), kinds.FLOAT32)
        return self._trt.PluginField(name, np.array([value], np.int32), kinds.INT32)


def load_plugin_library(trt: TensorRT, path: Path) -> None:
    """Make the plugins known to TensorRT's registry, once a process. EngineError where the library has none of them."""
    registry = trt.get_plugin_registry()
    if registry.get_creator(PLUGINS[0], PLUGIN_VERSION, PLUGIN_NAMESPACE) is None:
        registry.load_library(str(path))
    missing = [name for name in PLUGINS if registry.get_creator(name, PLUGIN_VERSION, PLUGIN_NAMESPACE) is None]
    if missing:
        raise EngineError(f"{path}: expected plugins {', '.join(PLUGINS)}, and TensorRT did not get {missing[0]} of it")
