"""The decoder by two TensorRT engines over one memory: weights, KV pools and slot state are bound once, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from sparsespec.builder.trt.engine_io import EngineIo, Sizes, layer_tensor, row_bucket
from sparsespec.plugins.pillar_attention.inputs import LayerInputs
from sparsespec.runtime.device.step_batch import StepBatch, StepMemory
from sparsespec.runtime.trt.buffers import BufferSizes, StepBuffers, make_buffers
from sparsespec.runtime.trt.context import Bindings, allocate_activations
from sparsespec.runtime.trt.device_stream import DeviceStream
from sparsespec.runtime.trt.engines import TensorRTEngines
from sparsespec.runtime.trt.runner import EngineRunner


class TensorRTSession:
    """Runs the decoder of a step: draft.engine where all rows are drafts, verify.engine everywhere else."""

    def __init__(self, engines: TensorRTEngines, weights: Mapping[str, Tensor], memory: StepMemory) -> None:
        """Bind everything; see EngineRunner for errors."""
        device, io = memory.device, engines.verify.io
        layers = _scored_layers(io, memory)
        self._buffers = _make_buffers(io, memory, weights["embedding"].dtype)
        bindings = Bindings(
            tensors={**weights, **_state_tensors(memory), **_layer_tensors(layers), **self._buffers.by_name()},
            activations=allocate_activations(engines, device),
            sizes=_sizes(memory, layers),
        )
        stream = DeviceStream(device)
        self._draft = EngineRunner(engines, engines.draft, bindings, stream)
        self._verify = EngineRunner(engines, engines.verify, bindings, stream)

    @property
    def num_graphs(self) -> int:
        """CUDA graphs captured so far."""
        return self._draft.num_graphs + self._verify.num_graphs

    def run(self, batch: StepBatch) -> Tensor:
        """Logits [num_logits, vocab_size] of the step; they last until the next one, in stream order."""
        rows = batch.inputs.logit_rows
        assert rows is not None
        num_rows, num_logits = len(batch.inputs.token_ids), len(rows)
        if num_rows:
            runner = self._verify if batch.step.landing else self._draft
            runner.check(num_rows, num_logits)
            self._buffers.fill(batch)
            if num_rows == num_logits:
                runner.replay(num_rows)
            else:  # a chunk of a prompt: too many shapes for graphs
                runner.run(num_rows, max(1, num_logits))  # TensorRT gets no empty tensor
        return self._buffers.logits[:num_logits]


def _make_buffers(io: EngineIo, memory: StepMemory, dtype: torch.dtype) -> StepBuffers:
    slots, draft_len = memory.state.draft_probs.shape[:2]
    most = io.profiles[-1].most
    sizes = BufferSizes(
        rows=most.num_rows,
        logits=min(row_bucket(slots * (draft_len + 1)), most.num_logits),
        slots=slots,
        vocab_size=memory.vocab_size,
    )
    return make_buffers(sizes, dtype, memory.device)


def _scored_layers(io: EngineIo, memory: StepMemory) -> tuple[LayerInputs[Tensor], ...]:
    """The layers; where nothing is scored, with one place for scores that nobody writes: the engine wants a tensor."""
    wanted = [tensor for tensor in io.inputs if tensor.name == layer_tensor(0, "scores")]
    if not wanted or memory.scores.numel():
        return memory.layers
    shape = wanted[0].at(Sizes(1, 1, 1, 1, 1, 1, max_scored=1, num_planes=1))
    unused = torch.zeros(shape, dtype=memory.scores.dtype, device=memory.device)
    return tuple(replace(each, scores=unused) for each in memory.layers)


def _state_tensors(memory: StepMemory) -> Mapping[str, Tensor]:
    names = ("kv_len", "recent_start", "num_staying", "num_moving", "lookups", "num_lookups", "page_table")
    return {**{name: getattr(memory.state, name) for name in names}, "rope_table": memory.rope_table}


def _layer_tensors(layers: tuple[LayerInputs[Tensor], ...]) -> Mapping[str, Tensor]:
    """All but kv_scale, which is among the weights."""
    return {
        layer_tensor(index, field.name): getattr(layer, field.name)
        for index, layer in enumerate(layers)
        for field in fields(LayerInputs)
        if field.name != "kv_scale"
    }


def _sizes(memory: StepMemory, layers: tuple[LayerInputs[Tensor], ...]) -> Sizes:
    scores = layers[0].scores
    assert scores is not None
    return Sizes(
        num_rows=1,
        num_logits=1,
        max_batch_size=len(memory.state.kv_len),
        num_pages=memory.kv_pool.shape[1],
        max_draft_len=memory.state.draft_lse.shape[2],
        max_lookups=memory.state.lookups.shape[1],
        max_scored=max(1, scores.shape[0]),
        num_planes=max(1, scores.shape[1]),
    )
