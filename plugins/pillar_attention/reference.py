"""PillarAttention in torch: the definition that the CUDA kernels are tested against, and the op on the CPU.

In the order of DRAFT and VERIFY in SparseSpec (arXiv 2512.01278, section 4): rotate, append, choose which tokens to
read, attend, score. Slots with equally many rows go together, padded to the longest. Sums are taken in fp32, or in fp64
for fp64 inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import (
    AttentionInputs,
    LayerInputs,
    PillarAttentionParams,
    QkNorm,
    ScorePlanes,
    StepInputs,
)

_FP8_MAX = torch.finfo(torch.float8_e4m3fn).max


def pillar_attention(params: PillarAttentionParams, inputs: AttentionInputs[Tensor]) -> Tensor:
    """Attention of every row of a step; appends the rows' K and V to the pool and writes the scores of scored rows.

    Row r of slot s is the token at position kv_len[s] + draft_index[s] + r. A row overwrites whatever K and V the pool
    holds at its position, so a VERIFY row replaces what the draft left there. The plan is not looked at. Returns
    [num_rows, num_heads * head_dim] in the type of qkv.
    """
    qkv, layer, step = inputs.qkv, inputs.layer, inputs.step
    output = torch.zeros(qkv.shape[0], params.num_heads * params.head_dim, dtype=qkv.dtype, device=qkv.device)
    for group in _slot_groups(step):
        q, k, v = _rotated_qkv(params, qkv[group.rows], inputs.qk_norm, step.rope_table[group.positions])
        pages = step.page_table[group.slots]
        _append(params, layer, pages, group.positions, k, v)
        read = _draft_reads(group, layer, step) if group.phase == Phase.DRAFT else _everything(group)
        keys, values = _gather(params, layer, pages, read.positions)
        logits = _logits(q, keys, read.allowed)
        output[group.rows] = _attended(logits.softmax(dim=-1), values).to(qkv.dtype)
        if group.phase == Phase.DRAFT:
            _write_draft_lse(group, logits, step.draft_index, layer.draft_lse)
        elif group.score_rows and params.score_planes != "none":
            assert layer.scores is not None, "scores are there wherever rows are scored"
            _write_scores(params.score_planes, group, _scored(params, group, logits, layer.draft_lse), layer.scores)
    return output


@dataclass(frozen=True)
class SlotGroup:
    """S slots of one phase with n rows each, and equally many scored rows."""

    phase: Phase
    slots: Tensor  # [S] int64
    rows: Tensor  # [S, n] int64 into qkv
    positions: Tensor  # [S, n] int64
    last: int  # the largest position
    score_rows: int  # of each
    score_index: Tensor  # [S] int64


@dataclass(frozen=True)
class Reads:
    """Positions whose K and V are read, m for each of S slots and heads; and which of them each row may attend to."""

    positions: Tensor  # [S, num_kv_heads or 1, m] int64
    allowed: Tensor  # [S, num_kv_heads or 1, n or 1, m] bool


def _slot_groups(step: StepInputs[Tensor]) -> list[SlotGroup]:
    """The slots at work, those with equally many rows of the same kind together. Waits for the device, once."""
    ends = step.row_start[1:]
    index = torch.zeros_like(step.phase) if step.score_index is None else step.score_index
    columns = (step.phase, step.row_start[:-1], ends, step.kv_len + step.draft_index, step.score_rows, index)
    members: dict[tuple[Phase, int, int], list[tuple[int, int, int, int]]] = {}
    for slot, (phase, start, end, first, score_rows, score_index) in enumerate(torch.stack(columns, dim=1).tolist()):
        if phase != Phase.IDLE and end > start:
            key = (Phase(phase), end - start, score_rows)
            members.setdefault(key, []).append((slot, start, first, score_index))
    return [_group(*key, part, step.phase.device) for key, part in members.items()]


def _group(
    phase: Phase, num_rows: int, score_rows: int, members: list[tuple[int, int, int, int]], device: torch.device
) -> SlotGroup:
    slots, starts, firsts, score_index = torch.tensor(members, dtype=torch.int64, device=device).unbind(dim=1)
    index = torch.arange(num_rows, device=device)
    return SlotGroup(
        phase=phase,
        slots=slots,
        rows=starts[:, None] + index,
        positions=firsts[:, None] + index,
        last=max(first for _, _, first, _ in members) + num_rows - 1,
        score_rows=score_rows,
        score_index=score_index,
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last axis, normalised in fp32 or fp64; rounds to the type of x before the weight."""
    exact = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return (exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype) * weight


def to_fp8(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale in fp32, as float8_e4m3fn, cut off at its largest number."""
    return (x.float() / scale).clamp_(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)


def _rotated_qkv(
    params: PillarAttentionParams, qkv: Tensor, qk_norm: QkNorm[Tensor] | None, rope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q [..., num_heads, head_dim], k and v [..., num_kv_heads, head_dim] of rows [..., all heads * head_dim]."""
    heads = qkv.unflatten(-1, (-1, params.head_dim))
    q, k, v = heads.split([params.num_heads, params.num_kv_heads, params.num_kv_heads], dim=-2)
    if qk_norm is not None:
        q = rms_norm(q, qk_norm.q_norm, params.rms_norm_eps)
        k = rms_norm(k, qk_norm.k_norm, params.rms_norm_eps)
    return _rotate(q, rope), _rotate(k, rope), v


def _rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate pairs (x[i], x[i + head_dim / 2]) by the position's angles; rounds once, to the type of x."""
    cos, sin = rope[..., None, :].chunk(2, dim=-1)
    low, high = x.to(rope.dtype).chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


def _append(
    params: PillarAttentionParams, layer: LayerInputs[Tensor], pages: Tensor, positions: Tensor, k: Tensor, v: Tensor
) -> None:
    page, offset = pages.gather(1, positions // params.page_size).long(), positions % params.page_size
    for index, x in enumerate((k, v)):
        stored = x if layer.kv_scale is None else to_fp8(x, layer.kv_scale[index, :, None])
        layer.kv_pool[page, index, :, offset] = stored


def _everything(group: SlotGroup) -> Reads:
    """All positions up to the slot's last; each row sees those up to its own."""
    index = torch.arange(group.last + 1, device=group.slots.device)
    return Reads(
        positions=torch.minimum(index, group.positions[:, -1:])[:, None],
        allowed=(index <= group.positions[..., None])[:, None],
    )


def _draft_reads(group: SlotGroup, layer: LayerInputs[Tensor], step: StepInputs[Tensor]) -> Reads:
    """The union of the pillars, the moving pillars, the lookups and all that is recent; see StepInputs."""
    own = group.positions[:, :, None]
    recent_start = step.recent_start[group.slots][:, None, None]
    older, distinct = _distinct(_chosen(group, layer, step, recent_start))
    num_recent = int((own - recent_start).max()) + 1
    recent = (recent_start + torch.arange(num_recent, device=own.device)).expand(-1, older.shape[1], -1)
    allowed = torch.cat((distinct, recent <= own), dim=2)
    positions = torch.cat((older, recent), dim=2)
    return Reads(torch.where(allowed, positions, own), allowed[:, :, None])


def _chosen(group: SlotGroup, layer: LayerInputs[Tensor], step: StepInputs[Tensor], recent_start: Tensor) -> Tensor:
    """[S, num_kv_heads, m] positions before recent_start, -1 in places without one."""
    num_staying, num_moving = step.num_staying[group.slots], step.num_moving[group.slots]
    pillars = layer.pillars[group.slots, :, : int((num_staying + num_moving).max())].long()
    place = torch.arange(pillars.shape[2], device=pillars.device)
    moves = place >= num_staying[:, None]
    pillars = pillars + (step.draft_index[group.slots][:, None] * moves)[:, None]
    unused = (place >= (num_staying + num_moving)[:, None])[:, None]
    lookups = step.lookups[group.slots].long()
    place = torch.arange(lookups.shape[1], device=lookups.device)
    lookups = lookups.masked_fill(place >= step.num_lookups[group.slots][:, None], -1)
    chosen = torch.cat((pillars.masked_fill(unused, -1), lookups[:, None].expand(-1, pillars.shape[1], -1)), dim=2)
    return chosen.masked_fill(chosen >= recent_start, -1)


def _distinct(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted along the last axis, and which of them are the first of their value and not negative."""
    ranked = positions.sort(dim=-1).values
    before = torch.nn.functional.pad(ranked[..., :-1], (1, 0), value=-1)
    return ranked, (ranked >= 0) & (ranked != before)


def _gather(
    params: PillarAttentionParams, layer: LayerInputs[Tensor], pages: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and values [S, num_kv_heads, m, head_dim] at positions [S, num_kv_heads or 1, m]; pages: [S, max_pages].

    Those of an FP8 pool in fp64, which holds stored * scale exactly.
    """
    pages = pages[:, None].expand(-1, positions.shape[1], -1)
    page, offset = pages.gather(2, positions // params.page_size).long(), positions % params.page_size
    head = torch.arange(params.num_kv_heads, device=positions.device)[:, None]
    keys, values = (layer.kv_pool[page, index, head, offset] for index in range(2))
    if layer.kv_scale is None:
        return keys, values
    scale = layer.kv_scale.double()[:, :, None, None]
    return keys.double() * scale[0], values.double() * scale[1]


def _logits(q: Tensor, keys: Tensor, allowed: Tensor) -> Tensor:
    """[S, num_kv_heads, group, n, m] scaled products of q [S, n, num_heads, head_dim] and keys, -inf where not allowed.

    keys: [S, num_kv_heads, m, head_dim]. allowed: broadcasts to [S, num_kv_heads, n, m].
    """
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    num_kv_heads, head_dim = keys.shape[1], keys.shape[3]
    grouped = q.to(exact).unflatten(2, (num_kv_heads, -1)).permute(0, 2, 3, 1, 4) * head_dim**-0.5
    logits = (grouped.flatten(2, 3) @ keys.to(exact).transpose(2, 3)).unflatten(2, grouped.shape[2:4])
    masked: Tensor = logits.masked_fill_(~allowed[:, :, None], -torch.inf)
    return masked


def _attended(probabilities: Tensor, values: Tensor) -> Tensor:
    """[S, n, num_heads * head_dim]."""
    mixed = probabilities.flatten(2, 3) @ values.to(probabilities.dtype)
    rows: Tensor = mixed.unflatten(2, probabilities.shape[2:4]).permute(0, 3, 1, 2, 4).flatten(2)
    return rows


def _write_draft_lse(group: SlotGroup, logits: Tensor, draft_index: Tensor, draft_lse: Tensor) -> None:
    """Of draft rows that draft_lse has a place for."""
    place = draft_index[group.slots].long()
    kept = place < draft_lse.shape[1]
    draft_lse[group.slots[kept], place[kept]] = logits.logsumexp(dim=-1).flatten(1)[kept]


def _scored(params: PillarAttentionParams, group: SlotGroup, logits: Tensor, draft_lse: Tensor) -> Tensor:
    """[S, num_kv_heads, group, score_rows, m] of the group's last rows: see ScoreNormalizer."""
    num_rows, scored = logits.shape[3], logits[:, :, :, -group.score_rows :]
    if params.score_normalizer == "exact" or group.phase != Phase.VERIFY or num_rows < 2:
        return scored.softmax(dim=-1)
    row = torch.arange(num_rows, device=logits.device)[-group.score_rows :]
    lse = draft_lse[group.slots[:, None], row.clamp(max=min(num_rows - 2, draft_lse.shape[1] - 1))]
    normalizer = lse.transpose(1, 2).unflatten(1, scored.shape[1:3])[..., None]
    probabilities: Tensor = (scored - normalizer).exp().clamp(max=1)
    return probabilities


def _write_scores(kind: ScorePlanes, group: SlotGroup, scored: Tensor, scores: Tensor) -> None:
    planes = score_planes(kind, scored.mean(dim=2).transpose(1, 2)).to(scores.dtype)
    num_planes, num_tokens = planes.shape[1], planes.shape[3]
    known = (torch.arange(num_tokens, device=scores.device) <= group.positions[:, -1:])[:, None, None]
    before = scores[group.score_index, :num_planes, :, :num_tokens]
    scores[group.score_index, :num_planes, :, :num_tokens] = torch.where(known, planes, before)


def score_planes(kind: ScorePlanes, rows: Tensor) -> Tensor:
    """[S, planes, num_kv_heads, tokens] from rows [S, score_rows, num_kv_heads, tokens]; see ScorePlanes."""
    if kind == "rows":
        return rows
    mean = rows.mean(dim=1)
    if kind == "mean":
        return mean[:, None]
    num_rows = mean.new_full((1, 1), rows.shape[1])
    return torch.stack((mean, mean_diagonal(rows, num_rows)), dim=1)


def mean_diagonal(rows: Tensor, num_rows: Tensor) -> Tensor:
    """At p the mean over i < num_rows of rows[..., i, :, p + i]; rows [..., R, num_kv_heads, tokens].

    num_rows: broadcasts to the result, [..., num_kv_heads, tokens]; at most R, and what lies beyond is not looked at.
    """
    total = torch.zeros_like(rows[..., 0, :, :])
    for index, row in enumerate(rows.unbind(dim=-3)):
        moved = torch.nn.functional.pad(row[..., index:], (0, index))
        total += moved.masked_fill(index >= num_rows, 0)
    return total / num_rows
