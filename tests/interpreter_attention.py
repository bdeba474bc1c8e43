"""PillarPlan and PillarAttention as docs/plugins.md describes them: in numpy, over pages, one row and head at a time.

Computes in fp64 and rounds where the op's tensors are of fewer bits: normed and rotated heads, outputs, scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from documented_plugins import Fields
from interpreter_values import Array, rounded
from naive_step import log_sum_exp, logits_of, planes_of
from recorded_types import DataType, require

PREFILL, DRAFT, VERIFY, IDLE = range(4)
PLAN_HEAD = 66688


@dataclass(frozen=True)
class AttentionTensors:
    """PillarAttention's inputs, by their names in docs/plugins.md."""

    qkv: Array
    kv_pool: Array
    draft_lse: Array
    pillars: Array
    row_start: Array
    phase: Array
    draft_index: Array
    score_rows: Array
    kv_len: Array
    recent_start: Array
    num_staying: Array
    num_moving: Array
    lookups: Array
    num_lookups: Array
    page_table: Array
    rope_table: Array
    plan: Array
    score_index: Array | None = None
    scores: Array | None = None
    kv_scale: Array | None = None  # [2, num_kv_heads]; kv_pool is FP8 then
    q_norm: Array | None = None
    k_norm: Array | None = None

    @property
    def lengths(self) -> list[Array]:
        """PillarPlan's inputs."""
        first = [self.row_start, self.phase, self.draft_index, self.score_rows]
        return [*first, self.kv_len, self.recent_start, self.num_staying, self.num_moving, self.num_lookups]


@dataclass(frozen=True)
class Row:
    """One row at work."""

    index: int  # of qkv
    slot: int
    position: int
    heads: Array  # [num_heads + 2 * num_kv_heads, head_dim] queries, keys and values; normed and rotated


def plan_of(lengths: Sequence[Array]) -> Array:
    """The lengths themselves, so that attention can see whether a plan is that of its step."""
    plan = np.zeros(PLAN_HEAD + len(lengths[1]), np.int32)
    numbers = np.concatenate(lengths)
    plan[: len(numbers)] = numbers
    return plan


@dataclass(frozen=True)
class Attention:
    """One layer's attention of one step."""

    fields: Fields
    tensors: AttentionTensors
    dtype: DataType  # T
    score_dtype: DataType  # S

    def run(self) -> Array:
        """`output`; updates kv_pool, draft_lse and scores where they are."""
        tensors = self.tensors
        require(np.array_equal(tensors.plan, plan_of(tensors.lengths)), "PillarAttention: a plan of other lengths")
        require(int(tensors.row_start[-1]) <= len(tensors.qkv), "PillarAttention: more rows than qkv has")
        for row in self._rows:
            self._append(row)
        output = np.zeros((len(tensors.qkv), self._num_heads, self._head_dim))
        for row in self._rows:
            output[row.index] = [self._attend(row, head) for head in range(self._num_heads)]
        self._write_scores()
        return rounded(output.reshape(len(output), -1), self.dtype)

    @property
    def _num_heads(self) -> int:
        return int(self.fields["num_heads"])

    @property
    def _num_kv_heads(self) -> int:
        return int(self.fields["num_kv_heads"])

    @property
    def _head_dim(self) -> int:
        return int(self.fields["head_dim"])

    @property
    def _group(self) -> int:
        return self._num_heads // self._num_kv_heads

    @cached_property
    def _rows(self) -> list[Row]:
        starts = self.tensors.row_start
        return [
            self._row(index, slot, place)
            for slot, phase in enumerate(self.tensors.phase)
            if phase != IDLE
            for place, index in enumerate(range(starts[slot], starts[slot + 1]))
        ]

    def _row(self, index: int, slot: int, place: int) -> Row:
        tensors = self.tensors
        position = int(tensors.kv_len[slot] + tensors.draft_index[slot] + place)
        heads = tensors.qkv[index].astype(np.float64).reshape(-1, self._head_dim)
        queries, keys, values = np.split(heads, [self._num_heads, self._num_heads + self._num_kv_heads])
        moved = [self._rotated(self._normed(queries, tensors.q_norm), position)]
        moved.append(self._rotated(self._normed(keys, tensors.k_norm), position))
        return Row(index, slot, position, np.concatenate([*moved, values]))

    def _normed(self, heads: Array, weight: Array | None) -> Array:
        if weight is None:
            return heads
        eps = float(self.fields["rms_norm_eps"])
        normed = heads / np.sqrt(np.mean(heads**2, axis=1, keepdims=True) + eps)
        return rounded(rounded(normed, self.dtype).astype(np.float64) * weight, self.dtype).astype(np.float64)

    def _rotated(self, heads: Array, position: int) -> Array:
        require(0 <= position < len(self.tensors.rope_table), f"PillarAttention: no position {position}")
        cos, sin = np.split(self.tensors.rope_table[position].astype(np.float64), 2)
        first, second = np.split(heads, 2, axis=1)
        turned = (first + 1j * second) * (cos + 1j * sin)
        return rounded(np.concatenate([turned.real, turned.imag], axis=1), self.dtype).astype(np.float64)

    def _place(self, slot: int, position: int) -> tuple[int, int]:
        """Page and place in the page."""
        page, offset = divmod(position, int(self.fields["page_size"]))
        require(0 <= page < self.tensors.page_table.shape[1], f"PillarAttention: position {position} has no page")
        return int(self.tensors.page_table[slot, page]), offset

    def _append(self, row: Row) -> None:
        page, offset = self._place(row.slot, row.position)
        keys_and_values = row.heads[self._num_heads :].reshape(2, self._num_kv_heads, self._head_dim)
        if self.tensors.kv_scale is not None:
            scale = self.tensors.kv_scale[:, :, None]
            keys_and_values = rounded(keys_and_values.astype(np.float32) / scale, DataType.FP8)
        self.tensors.kv_pool[page, :, :, offset] = keys_and_values

    def _attend(self, row: Row, head: int) -> Array:
        kv_head, tensors = head // self._group, self.tensors
        keys, values = self._cached(row, kv_head)
        logits = logits_of(row.heads[head], keys)
        lse = log_sum_exp(logits)
        if tensors.phase[row.slot] == DRAFT and tensors.draft_index[row.slot] < tensors.draft_lse.shape[1]:
            tensors.draft_lse[row.slot, tensors.draft_index[row.slot], head] = lse
        return np.exp(logits - lse) @ np.array(values)

    def _cached(self, row: Row, kv_head: int) -> tuple[list[Array], list[Array]]:
        """Keys and values that the row reads."""
        places = [self._place(row.slot, position) for position in self._positions(row, kv_head)]
        pool = self.tensors.kv_pool[:, :, kv_head].astype(np.float64)
        if self.tensors.kv_scale is not None:
            pool = pool * self.tensors.kv_scale[None, :, kv_head, None, None]
        return [pool[page, 0, offset] for page, offset in places], [pool[page, 1, offset] for page, offset in places]

    def _positions(self, row: Row, kv_head: int) -> list[int]:
        tensors, slot = self.tensors, row.slot
        if tensors.phase[slot] != DRAFT:
            return list(range(row.position + 1))
        recent = int(tensors.recent_start[slot])
        staying, moving = int(tensors.num_staying[slot]), int(tensors.num_moving[slot])
        pillars = tensors.pillars[slot, kv_head]
        moved = pillars[staying : staying + moving] + tensors.draft_index[slot]
        older = [*pillars[:staying], *moved, *tensors.lookups[slot, : tensors.num_lookups[slot]]]
        return [*sorted(dict.fromkeys(int(p) for p in older if p < recent)), *range(recent, row.position + 1)]

    def _write_scores(self) -> None:
        tensors, kind = self.tensors, self.fields["score_planes"]
        if tensors.scores is None or tensors.score_index is None:
            return
        for slot in np.flatnonzero((tensors.score_rows > 0) & (tensors.phase != IDLE)):
            rows = [row for row in self._rows if row.slot == slot]
            scored = [self._scored(row, len(rows)) for row in rows[-int(tensors.score_rows[slot]) :]]
            tokens = rows[-1].position + 1
            planes = planes_of(kind, np.array([np.pad(each, ((0, 0), (0, tokens - each.shape[1]))) for each in scored]))
            tensors.scores[tensors.score_index[slot], : len(planes), :, :tokens] = rounded(planes, self.score_dtype)

    def _scored(self, row: Row, num_rows: int) -> Array:
        """[num_kv_heads, tokens] mean over the query heads of each group."""
        scores = [self._scored_head(row, num_rows, head) for head in range(self._num_heads)]
        return np.array(scores).reshape(self._num_kv_heads, self._group, -1).mean(axis=1)

    def _scored_head(self, row: Row, num_rows: int, head: int) -> Array:
        logits = logits_of(row.heads[head], self._cached(row, head // self._group)[0])
        tensors = self.tensors
        if self.fields["score_normalizer"] == "exact" or tensors.phase[row.slot] != VERIFY or num_rows == 1:
            return np.exp(logits - log_sum_exp(logits))
        # The last row was no draft, and what does not fit into draft_lse was not kept: both borrow a neighbour's.
        place = min(row.position - int(tensors.kv_len[row.slot]), num_rows - 2, tensors.draft_lse.shape[1] - 1)
        return np.minimum(1, np.exp(logits - tensors.draft_lse[row.slot, place, head]))
