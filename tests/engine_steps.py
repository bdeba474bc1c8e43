"""Random steps for the engines of a tiny model: every input by its name, in the shapes that the engines declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from naive_step import NaiveSlot
from sparsespec.builder.build_config import BuildConfig, DType
from sparsespec.builder.decoder import Decoder, DecoderInputs
from sparsespec.builder.model_config import Family, ModelConfig
from sparsespec.builder.trt.config import TensorRTConfig
from sparsespec.builder.trt.engine_io import UPDATED, EngineKind, Sizes
from sparsespec.builder.trt.network import EngineSpec
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import LayerInputs, StepInputs
from sparsespec.runtime.device.attention_ops import ReferenceAttention
from sparsespec.runtime.device.torch_ops import TorchOps, rope_table
from tiny_models import random_weights, tiny_model_config

# No two axes share a size, so that a mistaken axis shows; a large eps, so that a missing one does.
MODEL = replace(
    tiny_model_config(num_layers=2, num_heads=6, num_kv_heads=2, head_dim=8, vocab_size=101),
    hidden_size=40,
    intermediate_size=56,
    rms_norm_eps=0.03,
)

IDLE = NaiveSlot(Phase.IDLE, num_rows=0, kv_len=7)
_FIRST_DRAFT = NaiveSlot(
    Phase.DRAFT, 1, kv_len=18, recent_start=11, num_staying=3, num_moving=2, num_lookups=4, draft_index=0
)
_LATER_DRAFT = replace(_FIRST_DRAFT, kv_len=20, recent_start=13, draft_index=2, num_staying=2, num_lookups=1)

# What each engine gets to do: of the draft engine, drafts; of the other one, everything at once.
SLOTS: dict[EngineKind, tuple[NaiveSlot, ...]] = {
    "draft": (_FIRST_DRAFT, IDLE, _LATER_DRAFT, replace(_LATER_DRAFT, kv_len=15, draft_index=1), IDLE),
    "verify": (
        NaiveSlot(Phase.PREFILL, num_rows=6, kv_len=0),
        NaiveSlot(Phase.VERIFY, num_rows=4, kv_len=13, score_rows=4),
        IDLE,
        _LATER_DRAFT,
        NaiveSlot(Phase.PREFILL, num_rows=5, kv_len=4, score_rows=3),
        _FIRST_DRAFT,
        NaiveSlot(Phase.VERIFY, num_rows=1, kv_len=9, score_rows=1),
    ),
}
_MAX_DRAFT_LEN = 3
_MAX_LOOKUPS = 11


@dataclass(frozen=True)
class EngineStep:
    """One step of an engine."""

    spec: EngineSpec
    tensors: Mapping[str, Tensor]  # every input of the engine


def engine_spec(
    kind: EngineKind,
    dtype: DType,
    family: Family = "llama",
    config: TensorRTConfig | None = None,
    model: ModelConfig = MODEL,
) -> EngineSpec:
    """An engine for SLOTS."""
    build = BuildConfig(
        dtype=dtype,
        max_batch_size=len(SLOTS[kind]),
        max_seq_len=31,
        max_num_tokens=64,
        max_draft_len=_MAX_DRAFT_LEN,
        max_budget=10,
        page_size=4,
    )
    return EngineSpec(replace(model, family=family), build, config or TensorRTConfig(), kind)


def random_step(spec: EngineSpec, seed: int) -> EngineStep:
    """SLOTS of that kind over random weights and a random cache; NaN in scores and where no draft left its lse."""
    slots, io = SLOTS[spec.kind], spec.io
    rng = np.random.default_rng(seed)
    num_rows = sum(slot.num_rows for slot in slots)
    sizes = Sizes(
        num_rows=num_rows,
        num_logits=num_rows - 3,
        max_batch_size=len(slots),
        num_pages=len(slots) * spec.build.max_pages + 1,
        max_draft_len=_MAX_DRAFT_LEN,
        max_lookups=_MAX_LOOKUPS,
        max_scored=len(slots) + 6,
        num_planes=_MAX_DRAFT_LEN + 1,
    )
    values = _step_values(spec, slots, sizes, rng)
    tensors = dict(random_weights(spec.model, getattr(torch, spec.build.dtype), seed, spec.build.kv_cache_dtype))
    for tensor in (*io.step, *(each for layer in io.layers for each in layer)):
        name, shape = tensor.name.rpartition(".")[2], tensor.at(sizes)
        array = values[name] if name in values else _layer_values(name, slots, shape, rng)
        tensors[tensor.name] = torch.as_tensor(array).to(getattr(torch, tensor.dtype)).reshape(shape)
    return EngineStep(spec, tensors)


def torch_outputs(step: EngineStep) -> dict[str, Tensor]:
    """What the torch lowering makes of it, under the names of the engine's outputs."""
    spec = step.spec
    mutable = {name: step.tensors[name].clone() for name in spec.io.mutable}
    tensors = {**step.tensors, **mutable}
    weights = {each.name: tensors[each.name] for each in spec.io.weights}
    decoder = Decoder[Tensor](TorchOps(ReferenceAttention()), spec.model, spec.attention, weights)
    inputs = DecoderInputs(
        token_ids=tensors["token_ids"],
        logit_rows=tensors.get("logit_rows"),
        step=StepInputs(*(tensors.get(name) for name in StepInputs.__dataclass_fields__)),
        layers=tuple(
            LayerInputs(*(tensors.get(f"layers.{layer}.{name}") for name in LayerInputs.__dataclass_fields__))
            for layer in range(spec.model.num_layers)
        ),
    )
    return {"logits": decoder(inputs), **{name + UPDATED: tensor for name, tensor in mutable.items()}}


def _step_values(
    spec: EngineSpec, slots: tuple[NaiveSlot, ...], sizes: Sizes, rng: np.random.Generator
) -> dict[str, Any]:
    """What is the same for all layers."""
    lookups = np.full((len(slots), sizes.max_lookups), -1)
    for index, slot in enumerate(slots):
        lookups[index, : slot.num_lookups] = rng.integers(0, slot.kv_len, slot.num_lookups)
    by_slot = ("phase", "draft_index", "score_rows", "kv_len", "recent_start", "num_staying", "num_moving")
    return {
        "token_ids": rng.integers(0, spec.model.vocab_size, sizes.num_rows),
        "logit_rows": rng.permutation(sizes.num_rows)[: sizes.num_logits],
        "row_start": np.cumsum([0, *(slot.num_rows for slot in slots)]),
        **{name: np.array([getattr(slot, name) for slot in slots]) for name in (*by_slot, "num_lookups")},
        "score_index": rng.permutation(sizes.max_scored)[: len(slots)],
        "lookups": lookups,
        "page_table": rng.permutation(sizes.num_pages)[: len(slots) * spec.build.max_pages],
        "rope_table": rope_table(spec.model, spec.build.scored_positions, torch.float32),
    }


def _layer_values(
    name: str, slots: tuple[NaiveSlot, ...], shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[Any]:
    """What a layer owns."""
    if name == "kv_pool":
        return rng.normal(size=shape)
    if name == "scores":
        return np.full(shape, np.nan)
    return _draft_lse(slots, shape, rng) if name == "draft_lse" else _pillars(slots, shape, rng)


def _draft_lse(slots: tuple[NaiveSlot, ...], shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    """As drafts may have left them; NaN where there were none."""
    lse = np.full(shape, np.nan)
    for index, slot in enumerate(slots):
        drafts = slot.num_rows - 1 if slot.phase == Phase.VERIFY else 0
        lse[index, :drafts] = rng.normal(2.5, 0.3, lse[index, :drafts].shape)
    return lse


def _pillars(slots: tuple[NaiveSlot, ...], shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    """Those that stay and those that move, each ascending and before recent_start; -1 where there are none."""
    pillars = np.full(shape, -1)
    for index, slot in enumerate(slots):
        for head in range(shape[1]):
            counts = (slot.num_staying, slot.num_moving)
            chosen = [np.sort(rng.choice(slot.recent_start, count, replace=False)) for count in counts if count]
            pillars[index, head, : sum(counts)] = np.concatenate([[], *chosen])
    return pillars
