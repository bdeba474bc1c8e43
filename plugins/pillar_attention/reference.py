"""PillarAttention in torch: the definition that the CUDA kernels are tested against, and the op on the CPU.

One slot at a time, in the order of DRAFT and VERIFY in SparseSpec (arXiv 2512.01278, section 4): rotate, append, choose
which tokens to read, attend, score. Sums are taken in fp32, or fp64 for fp64 inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import LayerInputs, PillarAttentionParams, QkNorm, StepInputs


def pillar_attention(
    params: PillarAttentionParams,
    qkv: Tensor,
    qk_norm: QkNorm[Tensor] | None,
    layer: LayerInputs[Tensor],
    step: StepInputs[Tensor],
) -> Tensor:
    """Attention of every row of a step; appends the rows' K and V to the pool and writes the scores of scored rows.

    qkv: [num_rows, (num_heads + 2 * num_kv_heads) * head_dim], before RoPE; row r of slot s is the token at position
    kv_len[s] + draft_index[s] + r. A row overwrites whatever K and V the pool holds at its position, so a VERIFY row
    replaces what the draft left there. Returns [num_rows, num_heads * head_dim] in the type of qkv.
    """
    output = torch.zeros(qkv.shape[0], params.num_heads * params.head_dim, dtype=qkv.dtype, device=qkv.device)
    for work in _active_slots(step):
        q, k, v = _rotated_qkv(params, qkv[work.rows], qk_norm, step.rope_table[work.positions])
        pages = step.page_table[work.slot]
        _append(params, layer.kv_pool, pages, work.positions, k, v)
        read = _positions_read(params, work, layer, step)
        keys, values = _gather(params, layer.kv_pool, pages, read)
        attended, probabilities = _attend(q, keys, values, read, work.positions)
        output[work.rows] = attended.to(qkv.dtype)
        if work.score_rows:
            scores = probabilities[:, :, -work.score_rows :].mean(dim=(1, 2))
            layer.scores[work.score_index, :, : scores.shape[-1]] = scores.to(layer.scores.dtype)
    return output


@dataclass(frozen=True)
class _SlotWork:
    slot: int
    phase: int
    rows: slice
    positions: Tensor  # [rows] int64
    score_rows: int
    score_index: int


def _active_slots(step: StepInputs[Tensor]) -> list[_SlotWork]:
    row_start, phase = step.row_start.tolist(), step.phase.tolist()
    first = (step.kv_len + step.draft_index).tolist()
    score_rows, score_index = step.score_rows.tolist(), step.score_index.tolist()
    work = []
    for slot in range(len(phase)):
        rows = slice(row_start[slot], row_start[slot + 1])
        if phase[slot] == Phase.IDLE or rows.start == rows.stop:
            continue
        last = first[slot] + rows.stop - rows.start
        positions = torch.arange(first[slot], last, device=step.phase.device)
        work.append(_SlotWork(slot, phase[slot], rows, positions, score_rows[slot], score_index[slot]))
    return work


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last axis, normalised in fp32 or fp64; rounds to the type of x before the weight."""
    exact = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return (exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype) * weight


def _rotated_qkv(
    params: PillarAttentionParams, qkv: Tensor, qk_norm: QkNorm[Tensor] | None, rope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[n, (num_heads + 2 * num_kv_heads) * head_dim] -> q [n, num_heads, head_dim], k and v [n, num_kv_heads, ...]."""
    heads = qkv.unflatten(1, (-1, params.head_dim))
    q, k, v = heads.split([params.num_heads, params.num_kv_heads, params.num_kv_heads], dim=1)
    if qk_norm is not None:
        q = rms_norm(q, qk_norm.q_norm, params.rms_norm_eps)
        k = rms_norm(k, qk_norm.k_norm, params.rms_norm_eps)
    return _rotate(q, rope), _rotate(k, rope), v


def _rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate pairs (x[i], x[i + head_dim / 2]) by the position's angles; rounds once, to the type of x."""
    cos, sin = rope[:, None, :].chunk(2, dim=-1)
    low, high = x.to(rope.dtype).chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


def _append(
    params: PillarAttentionParams, kv_pool: Tensor, pages: Tensor, positions: Tensor, k: Tensor, v: Tensor
) -> None:
    page, offset = pages[positions // params.page_size].long(), positions % params.page_size
    kv_pool[page, 0, :, offset] = k
    kv_pool[page, 1, :, offset] = v


def _positions_read(
    params: PillarAttentionParams, work: _SlotWork, layer: LayerInputs[Tensor], step: StepInputs[Tensor]
) -> Tensor:
    """[num_kv_heads, n] positions: everything, or for a draft row its head's pillars and everything recent."""
    last = int(work.positions[-1])
    if work.phase != Phase.DRAFT:
        everything = torch.arange(last + 1, device=work.positions.device)
        return everything.expand(params.num_kv_heads, -1)
    recent = torch.arange(int(step.recent_start[work.slot]), last + 1, device=work.positions.device)
    pillars = layer.pillars[work.slot, :, : int(step.num_pillars[work.slot])].long()
    return torch.cat((pillars, recent.expand(params.num_kv_heads, -1)), dim=1)


def _gather(params: PillarAttentionParams, kv_pool: Tensor, pages: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [num_kv_heads, n, head_dim] at positions [num_kv_heads, n]."""
    page, offset = pages[positions // params.page_size].long(), positions % params.page_size
    head = torch.arange(params.num_kv_heads, device=positions.device)[:, None]
    return kv_pool[page, 0, head, offset], kv_pool[page, 1, head, offset]


def _attend(q: Tensor, keys: Tensor, values: Tensor, read: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Causal softmax attention of q [n, num_heads, head_dim] over [num_kv_heads, m, head_dim].

    Returns the output [n, num_heads * head_dim] and the probabilities [num_kv_heads, group, n, m].
    """
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    num_kv_heads, _, head_dim = keys.shape
    grouped = q.to(exact).unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3) * head_dim**-0.5
    group_and_rows = grouped.shape[1:3]
    logits = (grouped.flatten(1, 2) @ keys.to(exact).transpose(1, 2)).unflatten(1, group_and_rows)
    unseen = read[:, None, None, :] > positions[:, None]
    probabilities = logits.masked_fill_(unseen, -torch.inf).softmax(dim=-1)
    attended = (probabilities.flatten(1, 2) @ values.to(exact)).unflatten(1, group_and_rows)
    return attended.permute(2, 0, 1, 3).flatten(1), probabilities
