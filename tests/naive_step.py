"""PillarAttention as plainly as it can be written, to judge every implementation of it by.

In numpy and fp64, one row and one head at a time, with rotations as complex numbers and a dict instead of pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fp8_numbers import nearest_fp8
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import PillarAttentionParams, QkNorm, ScorePlanes

Array = NDArray[np.float64]
Cache = dict[tuple[int, int], tuple[Array, Array]]  # (slot, position) -> K and V, [num_kv_heads, head_dim] each

THETA = 10000.0


@dataclass(frozen=True)
class NaiveSlot:
    """One slot's part in a step."""

    phase: Phase
    num_rows: int
    kv_len: int
    draft_index: int = 0
    recent_start: int = 0
    num_staying: int = 0
    score_rows: int = 0
    num_moving: int = 0
    num_lookups: int = 0

    @property
    def positions(self) -> range:
        """Positions of its rows."""
        first = self.kv_len + self.draft_index
        return range(first, first + self.num_rows)

    @property
    def cached(self) -> range:
        """Positions with K and V before the step; a verification also finds those of its drafts."""
        drafted = self.num_rows - 1 if self.phase == Phase.VERIFY else 0
        return range(self.positions.start + drafted)


@dataclass(frozen=True)
class NaiveStep:
    """A step in plain numbers, all of them exact in the type under test."""

    params: PillarAttentionParams
    slots: tuple[NaiveSlot, ...]
    qkv: Array  # [num_rows, (num_heads + 2 * num_kv_heads) * head_dim]
    cache: Cache
    pillars: dict[tuple[int, int], list[int]]  # (slot, KV head) -> positions
    moving: dict[tuple[int, int], list[int]]  # (slot, KV head) -> positions in the first draft row
    lookups: dict[int, list[int]]  # slot -> positions
    qk_norm: QkNorm[Array] | None
    draft_lse: Array  # [slots, max_draft_len, num_heads]; NaN where no scored row may look
    kv_scale: Array | None = None  # [2, num_kv_heads]: the cache is FP8, and K and V are what it gives back


@dataclass(frozen=True)
class NaiveAnswer:
    """What the op must return and leave behind."""

    output: Array  # [num_rows, num_heads * head_dim]
    written: Cache  # K and V of the step's rows
    scores: dict[int, Array]  # slot -> [score_rows, num_kv_heads, tokens]
    draft_lse: Array  # as in the step, but for what its draft rows leave


def naive_attention(step: NaiveStep) -> NaiveAnswer:
    """Write every row's K and V, then attend row by row and head by head."""
    params, written = step.params, written_by(step)
    cache = step.cache | written
    output, draft_lse = [], step.draft_lse.copy()
    scores = {
        slot: np.zeros((part.score_rows, params.num_kv_heads, part.positions.stop))
        for slot, part in enumerate(step.slots)
        if part.score_rows
    }
    group = params.num_heads // params.num_kv_heads
    for slot, position, heads in rows_of(step):
        part = step.slots[slot]
        for head in range(params.num_heads):
            read = positions_read(step, slot, head // group, position)
            logits = logits_of(rotated(heads[head], position), [cache[slot, p][0][head // group] for p in read])
            lse = log_sum_exp(logits)
            output.append(np.exp(logits - lse) @ np.array([cache[slot, p][1][head // group] for p in read]))
            if part.phase == Phase.DRAFT and part.draft_index < draft_lse.shape[1]:
                draft_lse[slot, part.draft_index, head] = lse
            row = position - (part.positions.stop - part.score_rows)
            if row >= 0:
                normalizer = _draft_lse_of_row(step, slot, position, head)
                scored = np.exp(logits - (lse if normalizer is None else normalizer))
                scores[slot][row, head // group, read] += np.minimum(scored, 1) / group
    values = np.array(output).reshape(len(step.qkv), params.num_heads * params.head_dim)
    return NaiveAnswer(values, written, scores, draft_lse)


def written_by(step: NaiveStep) -> Cache:
    """K and V of the step's rows."""
    num_heads, num_kv_heads = step.params.num_heads, step.params.num_kv_heads
    return {
        (slot, position): kept(
            step.kv_scale,
            np.array([rotated(key, position) for key in heads[num_heads : num_heads + num_kv_heads]]),
            heads[num_heads + num_kv_heads :],
        )
        for slot, position, heads in rows_of(step)
    }


def kept(scale: Array | None, keys: Array, values: Array) -> tuple[Array, Array]:
    """What the cache gives back of K and V, [num_kv_heads, head_dim] each: numbers of FP8 times the head's scale."""
    if scale is None:
        return keys, values

    def given_back(x: Array, scales: Array) -> Array:
        return nearest_fp8(x.astype(np.float32) / scales[:, None].astype(np.float32)) * scales[:, None]

    return given_back(keys, scale[0]), given_back(values, scale[1])


def _draft_lse_of_row(step: NaiveStep, slot: int, position: int, head: int) -> float | None:
    """What a scored row is normalised by instead of its own log-sum-exp; None for nothing."""
    part = step.slots[slot]
    if step.params.score_normalizer == "exact" or part.phase != Phase.VERIFY or part.num_rows == 1:
        return None
    row, num_drafts = position - part.positions.start, part.num_rows - 1
    last_known = min(num_drafts, step.draft_lse.shape[1]) - 1
    return float(step.draft_lse[slot, min(row, last_known), head])


def rows_of(step: NaiveStep) -> list[tuple[int, int, Array]]:
    """(slot, position, [num_heads + 2 * num_kv_heads, head_dim]) of every row, normed."""
    owners = [(slot, position) for slot, part in enumerate(step.slots) for position in part.positions]
    heads = step.qkv.reshape(len(owners), step.qkv.shape[1] // step.params.head_dim, step.params.head_dim)
    return [(slot, position, _normed(step, row)) for (slot, position), row in zip(owners, heads, strict=True)]


def _normed(step: NaiveStep, row: Array) -> Array:
    """Query and key heads over their root mean squares, times the norms' weights; value heads as they are."""
    if step.qk_norm is None:
        return row
    weights = [step.qk_norm.q_norm] * step.params.num_heads + [step.qk_norm.k_norm] * step.params.num_kv_heads
    normed = [
        head / np.sqrt(np.mean(head**2) + step.params.rms_norm_eps) * weight
        for head, weight in zip(row, weights, strict=False)
    ]
    return np.array([*normed, *row[len(weights) :]])


def rotated(x: Array, position: int) -> Array:
    """Pair i is the complex number x[i] + i x[i + head_dim / 2], turned by position / theta^(2i / head_dim)."""
    half = len(x) // 2
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * THETA ** (-np.arange(half) / half))
    return np.concatenate((turned.real, turned.imag))


def planes_of(kind: ScorePlanes, rows: Array) -> Array:
    """What `scores` holds of [score_rows, num_kv_heads, tokens]."""
    if kind == "rows":
        return rows
    mean = rows.sum(axis=0) / len(rows)
    if kind == "mean":
        return mean[None]
    diagonal = np.zeros_like(mean)
    for row, head, token in np.ndindex(*rows.shape):
        if token >= row:
            diagonal[head, token - row] += rows[row, head, token] / len(rows)
    return np.array([mean, diagonal])


def positions_read(step: NaiveStep, slot: int, kv_head: int, position: int) -> list[int]:
    """What the row at `position` attends to."""
    part = step.slots[slot]
    if part.phase != Phase.DRAFT:
        return list(range(position + 1))
    moved = [p + part.draft_index for p in step.moving[slot, kv_head]]
    older = [p for p in (*step.pillars[slot, kv_head], *moved, *step.lookups[slot]) if p < part.recent_start]
    return [*sorted(dict.fromkeys(older)), *range(part.recent_start, position + 1)]


def logits_of(query: Array, keys: list[Array]) -> Array:
    return np.array([query @ key for key in keys]) / np.sqrt(len(query))


def log_sum_exp(logits: Array) -> float:
    return float(logits.max() + np.log(np.exp(logits - logits.max()).sum()))
