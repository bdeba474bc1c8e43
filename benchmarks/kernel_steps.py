"""The tensors of a timed step, on torch's default device: lengths, random pages, random pillars, scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernel_cases import BLOCK_ROWS, DRAFT_INDEX, DRAFT_LEN, SCORE_PLANES, SPECULATION, Workload, recent_start
from sparsespec.builder.rope import rope_frequencies
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import LayerInputs, PillarAttentionParams, StepInputs
from sparsespec.plugins.pillar_select.inputs import SelectInputs

ROPE_THETA = 1e6
DRAFT_LSE = 9.0  # about what rows of random queries have over random keys


@dataclass(frozen=True)
class KvPools:
    """What the layers take in turn. kv_scale as in LayerInputs."""

    pools: tuple[Tensor, ...]
    kv_scale: Tensor | None = None


@dataclass(frozen=True)
class PreparedStep:
    """Everything that the ops read in one step; an element of `layers` for each layer of the model."""

    workload: Workload
    params: PillarAttentionParams
    step: StepInputs[Tensor]
    qkv: Tensor
    layers: tuple[LayerInputs[Tensor], ...]


def prepare(workload: Workload, kv: KvPools) -> PreparedStep:
    """Layers have pools, and pillars, in turn. bf16."""
    geometry = workload.geometry
    params = PillarAttentionParams(
        geometry.num_heads,
        geometry.num_kv_heads,
        geometry.head_dim,
        geometry.page_size,
        score_planes="diagonal" if workload.scored else "none",
    )
    step = step_inputs(workload)
    width = (geometry.num_heads + 2 * geometry.num_kv_heads) * geometry.head_dim
    qkv = torch.randn(int(step.row_start[-1]), width, dtype=torch.bfloat16)
    pools = kv.pools[:1] if workload.cached else kv.pools
    in_turn = [replace(layer_inputs(workload, pool), kv_scale=kv.kv_scale) for pool in pools]
    scores = empty_scores(workload) if workload.scored else [None] * geometry.num_layers
    layers = (replace(in_turn[index % len(in_turn)], scores=each) for index, each in enumerate(scores))
    return PreparedStep(workload, params, step, qkv, tuple(layers))


def step_inputs(workload: Workload) -> StepInputs[Tensor]:
    """A step whose drafts are halfway through their block."""
    geometry, draft, batch = workload.geometry, workload.draft, workload.geometry.batch
    phase = torch.tensor([int(phase) for phase in workload.phases], dtype=torch.int32)
    drafting, verifying, prefilling = (phase == kind for kind in (Phase.DRAFT, Phase.VERIFY, Phase.PREFILL))
    rows = drafting * 1 + (verifying | prefilling) * workload.num_rows
    return StepInputs(
        row_start=torch.cat((rows.new_zeros(1), rows.cumsum(0))).int(),
        phase=phase,
        draft_index=(drafting * DRAFT_INDEX).int(),
        score_rows=(verifying * workload.num_rows * workload.scored).int(),
        score_index=(verifying.cumsum(0) - 1).clamp(min=0).int() if workload.scored else None,
        kv_len=_same(batch, geometry.context),
        recent_start=_same(batch, recent_start(workload)),
        num_staying=_same(batch, draft.staying),
        num_moving=_same(batch, draft.moving),
        lookups=torch.randint(max(1, geometry.context // 2), (batch, SPECULATION.max_lookups), dtype=torch.int32),
        num_lookups=_same(batch, draft.lookups),
        page_table=_page_table(workload),
        rope_table=rope_table(geometry.positions, geometry.head_dim),
    )


def _page_table(workload: Workload) -> Tensor:
    """[batch, slot_pages]"""
    batch, slot_pages = workload.geometry.batch, workload.geometry.slot_pages
    pages = torch.randperm(batch * slot_pages, dtype=torch.int32).view(batch, -1)
    return pages[:1].repeat(batch, 1) if workload.cached else pages


def rope_table(positions: int, head_dim: int) -> Tensor:
    """[positions, head_dim] cosines, then sines."""
    frequencies = torch.tensor(rope_frequencies(head_dim, ROPE_THETA, None))
    angles = torch.arange(positions)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def layer_inputs(workload: Workload, pool: Tensor) -> LayerInputs[Tensor]:
    """Without scores."""
    geometry = workload.geometry
    return LayerInputs(
        kv_pool=pool,
        draft_lse=torch.full((geometry.batch, DRAFT_LEN, geometry.num_heads), DRAFT_LSE),
        pillars=random_pillars(workload),
        scores=None,
    )


def random_pillars(workload: Workload) -> Tensor:
    """[batch, num_kv_heads, staying + moving, but 1 at the least] as far from each other as pillars are."""
    geometry, draft = workload.geometry, workload.draft
    width = draft.staying + draft.moving
    if width == 0:
        return torch.zeros(geometry.batch, geometry.num_kv_heads, 1, dtype=torch.int32)
    below = recent_start(workload) - DRAFT_LEN
    order = torch.rand(geometry.batch, geometry.num_kv_heads, below).argsort(dim=-1)
    chosen = (order[..., : draft.staying], order[..., draft.staying : width])
    return torch.cat([part.sort(dim=-1).values for part in chosen], dim=-1).int()


def empty_scores(workload: Workload) -> Tensor:
    """[num_layers, scored slots, planes, num_kv_heads, positions] fp16."""
    geometry = workload.geometry
    shape = (workload.num_scored, SCORE_PLANES, geometry.num_kv_heads, geometry.positions)
    return torch.zeros(geometry.num_layers, *shape, dtype=torch.float16)


def select_inputs(workload: Workload) -> SelectInputs[Tensor]:
    """Scores of all layers and scored slots, spread as wide as attention probabilities; two drafts did not stand."""
    step, scores = step_inputs(workload), empty_scores(workload)
    slots = (step.score_rows > 0).nonzero().flatten().int()
    for layer in scores:
        layer.copy_((torch.randn(layer.shape) * 3 - 8).exp_())
    return SelectInputs(
        scores=scores,
        scored_slot=slots,
        moving_shift=torch.full_like(slots, BLOCK_ROWS - 2),
        recent_start=step.recent_start,
        num_staying=step.num_staying,
        num_moving=step.num_moving,
        pillars=random_pillars(workload).expand(workload.geometry.num_layers, -1, -1, -1).contiguous(),
    )


def draft_tokens(prepared: PreparedStep, layer: LayerInputs[Tensor]) -> Tensor:
    """[batch, num_kv_heads, draft.total] positions that draft rows read, if all slots draft."""
    draft, geometry = prepared.workload.draft, prepared.workload.geometry
    start = recent_start(prepared.workload)
    recent = torch.arange(start, start + draft.recent, dtype=torch.int32, device=layer.pillars.device)
    shape = (geometry.batch, geometry.num_kv_heads, -1)
    return torch.cat(
        (
            layer.pillars[..., : draft.staying],
            layer.pillars[..., draft.staying : draft.staying + draft.moving] + DRAFT_INDEX,
            prepared.step.lookups[:, None, : draft.lookups].expand(*shape),
            recent.expand(*shape),
        ),
        dim=-1,
    )


def pool_rows(prepared: PreparedStep, tokens: Tensor) -> Tensor:
    """[batch, num_kv_heads, 2, n] rows of kv_pool.view(-1, head_dim) with the keys and values of such positions."""
    geometry = prepared.workload.geometry
    heads, size = geometry.num_kv_heads, geometry.page_size
    pages = prepared.step.page_table[:, None].expand(-1, heads, -1).gather(2, (tokens // size).long())
    head = torch.arange(heads, dtype=torch.int32, device=tokens.device)[:, None, None]
    plane = torch.arange(2, dtype=torch.int32, device=tokens.device)[:, None]
    return ((pages[:, :, None] * 2 + plane) * heads + head) * size + (tokens % size)[:, :, None]


def _same(batch: int, value: int) -> Tensor:
    return torch.full((batch,), value, dtype=torch.int32)
