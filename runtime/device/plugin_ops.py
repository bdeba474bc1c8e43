"""The project's own ops by its plugins: the CUDA kernels, called as TensorRT calls them but without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import AttentionInputs, PillarAttentionParams, StepInputs
from sparsespec.plugins.pillar_select.inputs import SelectInputs
from sparsespec.plugins.plugin_signature import (
    attention_fields,
    attention_inputs,
    plan_fields,
    plan_inputs,
    select_inputs,
)


class Plugin(Protocol):
    """What is used of plugins.plugin_host.Plugin."""

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Enqueue on the current stream of the inputs' device; an output may be an input that is updated in place."""


class PluginSource(Protocol):
    """What is used of plugins.plugin_host.PluginLibrary."""

    def create(self, name: str, fields: Mapping[str, int | float | str]) -> Plugin:
        """A plugin by the name of its creator."""


class PluginAttention:
    """attention_ops.AttentionOps by plugins. Nothing waits for the device, and no value of it is read here."""

    def __init__(self, library: PluginSource) -> None:
        self._library = library
        self._select = library.create("PillarSelect", {})
        self._plans: dict[PillarAttentionParams, Plugin] = {}
        # With QK-norm or without; for a KV pool of FP8 or of the model's type.
        self._attentions: dict[tuple[PillarAttentionParams, bool, bool], Plugin] = {}

    @property
    def library(self) -> PluginSource:
        """Where the plugins are from."""
        return self._library

    def try_on(self, device: torch.device, params: PillarAttentionParams) -> None:
        """Plan a step without work. PluginError where the library has no program for this CUDA device."""
        none = torch.zeros(1, dtype=torch.int32, device=device)
        idle = torch.full_like(none, Phase.IDLE)
        self._plan(params).run([none.new_zeros(2), idle, *[none] * 7])

    def plan(self, params: PillarAttentionParams, step: StepInputs[Tensor]) -> Tensor:
        """See AttentionOps."""
        return self._plan(params).run(plan_inputs(step))[0]

    def _plan(self, params: PillarAttentionParams) -> Plugin:
        if params not in self._plans:
            self._plans[params] = self._library.create("PillarPlan", plan_fields(params))
        return self._plans[params]

    def attention(self, params: PillarAttentionParams, inputs: AttentionInputs[Tensor]) -> Tensor:
        """See AttentionOps."""
        if len(inputs.qkv) == 0:  # all requests wait for their places in the stagger
            return inputs.qkv.new_empty(0, params.num_heads * params.head_dim)
        kind = (params, inputs.qk_norm is not None, inputs.layer.kv_scale is not None)
        if kind not in self._attentions:
            self._attentions[kind] = self._library.create("PillarAttention", attention_fields(*kind))
        return self._attentions[kind].run(attention_inputs(params, inputs))[0]

    def select(self, inputs: SelectInputs[Tensor]) -> None:
        """See AttentionOps."""
        self._select.run(select_inputs(inputs))
