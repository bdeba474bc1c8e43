"""PillarAttention as plainly as it can be written, to judge every implementation of it by.

In numpy and fp64, one row and one head at a time, with rotations as complex numbers and a dict instead of pages.
`paged` lays the same step out as the op takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import (
    LayerInputs,
    PillarAttentionParams,
    QkNorm,
    ScorePlanes,
    StepInputs,
)

Array = NDArray[np.float64]
Attention = Callable[
    [PillarAttentionParams, Tensor, QkNorm[Tensor] | None, LayerInputs[Tensor], StepInputs[Tensor]], Tensor
]
Cache = dict[tuple[int, int], tuple[Array, Array]]  # (slot, position) -> K and V, [num_kv_heads, head_dim] each

THETA = 10000.0
# Largest error of outputs and keys of order one, and largest relative error of scores: the roundings of rotated Q and K
# and of the output to 11 and 8 bits, and in fp32 and fp64 also those of the sums.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


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


@dataclass(frozen=True)
class NaiveAnswer:
    """What the op must return and leave behind."""

    output: Array  # [num_rows, num_heads * head_dim]
    written: Cache  # K and V of the step's rows
    scores: dict[int, Array]  # slot -> [score_rows, num_kv_heads, tokens]


@dataclass(frozen=True)
class Paged:
    """A step as the op takes it, with NaN wherever nothing lives that the step may read."""

    qkv: Tensor
    qk_norm: QkNorm[Tensor] | None
    layer: LayerInputs[Tensor]
    step: StepInputs[Tensor]


def random_step(
    params: PillarAttentionParams, slots: tuple[NaiveSlot, ...], dtype: torch.dtype, seed: int, qk_norm: bool = False
) -> NaiveStep:
    """Normal numbers rounded to dtype, also the weights of norms, and random pillars before recent_start."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, mean: float = 0.0, deviation: float = 1.0) -> Array:
        return torch.from_numpy(rng.normal(mean, deviation, shape)).to(dtype).double().numpy()

    def norm() -> Array:
        # Below 1, so that three roundings of a normed key stay in the tolerance made for one.
        return normal(params.head_dim, mean=0.7, deviation=0.2)

    heads, size = params.num_kv_heads, params.head_dim
    return NaiveStep(
        params=params,
        slots=slots,
        qkv=normal(sum(part.num_rows for part in slots), (params.num_heads + 2 * heads) * size),
        cache={
            (slot, p): (normal(heads, size), normal(heads, size))
            for slot, part in enumerate(slots)
            for p in part.cached
        },
        pillars=_chosen(rng, slots, heads, [part.num_staying for part in slots]),
        moving=_chosen(rng, slots, heads, [part.num_moving for part in slots]),
        lookups={slot: rng.integers(0, part.kv_len + 1, part.num_lookups).tolist() for slot, part in enumerate(slots)},
        qk_norm=QkNorm(norm(), norm()) if qk_norm else None,
    )


def _chosen(
    rng: np.random.Generator, slots: tuple[NaiveSlot, ...], heads: int, counts: list[int]
) -> dict[tuple[int, int], list[int]]:
    """So many distinct positions before recent_start, for every slot and head."""
    return {
        (slot, head): sorted(rng.choice(part.recent_start, count, replace=False).tolist())
        for slot, (part, count) in enumerate(zip(slots, counts, strict=True))
        for head in range(heads)
    }


def naive_attention(step: NaiveStep) -> NaiveAnswer:
    """Write every row's K and V, then attend row by row and head by head."""
    params = step.params
    written: Cache = {}
    for slot, position, heads in _rows(step):
        keys = heads[params.num_heads : params.num_heads + params.num_kv_heads]
        values = heads[params.num_heads + params.num_kv_heads :]
        written[slot, position] = (np.array([_rotated(key, position) for key in keys]), values)
    cache = step.cache | written
    output = []
    scores = {
        slot: np.zeros((part.score_rows, params.num_kv_heads, part.positions.stop))
        for slot, part in enumerate(step.slots)
        if part.score_rows
    }
    group = params.num_heads // params.num_kv_heads
    for slot, position, heads in _rows(step):
        part = step.slots[slot]
        for head in range(params.num_heads):
            read = _positions_read(step, slot, head // group, position)
            entries = [(cache[slot, p][0][head // group], cache[slot, p][1][head // group]) for p in read]
            attended, probabilities = _attend(_rotated(heads[head], position), entries)
            output.append(attended)
            row = position - (part.positions.stop - part.score_rows)
            if row >= 0:
                scores[slot][row, head // group, read] += probabilities / group
    return NaiveAnswer(np.array(output).reshape(len(step.qkv), params.num_heads * params.head_dim), written, scores)


def paged(step: NaiveStep, dtype: torch.dtype, device: str, seed: int) -> Paged:
    """Scatter the cache over pages in random order. Page 0 is nobody's: unused places of the page table name it."""
    rng = np.random.default_rng(seed)
    params, slots = step.params, step.slots
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    pages = _page_table(step, rng)
    pool = torch.full(
        (int(pages.max()) + 2, 2, params.num_kv_heads, params.page_size, params.head_dim), torch.nan, dtype=dtype
    )
    width = max(part.num_staying + part.num_moving for part in slots) + 1
    pillars = torch.full((len(slots), params.num_kv_heads, width), -1)
    lookups = np.full((len(slots), max(part.num_lookups for part in slots) + 1), -1)
    for slot, part in enumerate(slots):
        lookups[slot, : part.num_lookups] = step.lookups[slot]
        for head in range(params.num_kv_heads):
            chosen = [*step.pillars[slot, head], *step.moving[slot, head]]
            pillars[slot, head, : len(chosen)] = torch.tensor(chosen)
            for position in _positions_readable(step, slot, head):
                page, offset = pages[slot, position // params.page_size], position % params.page_size
                for index, vector in enumerate(step.cache[slot, position]):
                    pool[page, index, head, offset] = torch.from_numpy(vector[head])
    longest = max(part.positions.stop for part in slots)
    planes = {"mean": 1, "diagonal": 2, "rows": max(part.score_rows for part in slots)}[params.score_planes]
    scores = torch.full((len(slots) + 2, planes, params.num_kv_heads, longest), torch.nan, dtype=exact)

    def ints(values: object) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.int32, device=device)

    def floats(values: Array) -> Tensor:
        return torch.from_numpy(values).to(device, dtype)

    norm = step.qk_norm
    return Paged(
        qkv=floats(step.qkv),
        qk_norm=None if norm is None else QkNorm(floats(norm.q_norm), floats(norm.k_norm)),
        layer=LayerInputs(pool.to(device), ints(pillars), scores.to(device)),
        step=StepInputs(
            row_start=ints(np.cumsum([0, *(part.num_rows for part in slots)])),
            phase=ints([part.phase for part in slots]),
            draft_index=ints([part.draft_index for part in slots]),
            score_rows=ints([part.score_rows for part in slots]),
            score_index=ints(rng.permutation(len(slots) + 2)[: len(slots)]),
            kv_len=ints([part.kv_len for part in slots]),
            recent_start=ints([part.recent_start for part in slots]),
            num_staying=ints([part.num_staying for part in slots]),
            num_moving=ints([part.num_moving for part in slots]),
            lookups=ints(lookups),
            num_lookups=ints([part.num_lookups for part in slots]),
            page_table=ints(pages),
            rope_table=_rope_table(params.head_dim, longest).to(device, exact),
        ),
    )


def check_attention(attention: Attention, step: NaiveStep, dtype: torch.dtype, device: str, seed: int) -> None:
    """Run `attention` on a paged copy of `step`; AssertionError unless everything it returns and leaves is right."""
    given = paged(step, dtype, device, seed)
    pool_before = given.layer.kv_pool.clone()
    output = attention(step.params, given.qkv, given.qk_norm, given.layer, given.step)
    answer = naive_attention(step)
    torch.testing.assert_close(output, output.to(given.qkv), rtol=0, atol=0)
    assert_near(output, torch.from_numpy(answer.output), TOLERANCES[dtype])
    _check_pool(step, given, pool_before, TOLERANCES[dtype])
    scores = torch.full_like(given.layer.scores, torch.nan).cpu().double()
    places = given.step.score_index.tolist()
    for slot, rows in answer.scores.items():
        expected = _planes(step.params.score_planes, rows)
        scores[places[slot], : len(expected), :, : expected.shape[2]] = torch.from_numpy(expected)
    found = given.layer.scores.cpu().double()
    torch.testing.assert_close(found, scores, rtol=TOLERANCES[dtype], atol=0, equal_nan=True)


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=tolerance, equal_nan=True)


def _check_pool(step: NaiveStep, after: Paged, before: Tensor, tolerance: float) -> None:
    """K and V of the rows are in place; every other bit of the pool is as it was."""
    keys, values, untouched = before.clone(), before.clone(), torch.ones_like(before[:, 0], dtype=torch.bool)
    pages, size = after.step.page_table.tolist(), step.params.page_size
    for (slot, position), (key, value) in naive_attention(step).written.items():
        page, offset = pages[slot][position // size], position % size
        keys[page, 0, :, offset] = torch.from_numpy(key).to(keys)
        values[page, 1, :, offset] = torch.from_numpy(value).to(values)
        untouched[page, :, offset] = False
    pool = after.layer.kv_pool
    torch.testing.assert_close(pool[:, 1], values[:, 1], rtol=0, atol=0, equal_nan=True)
    assert_near(pool[:, 0], keys[:, 0].double().cpu(), tolerance)
    torch.testing.assert_close(pool[:, 0][untouched], before[:, 0][untouched], rtol=0, atol=0, equal_nan=True)


def _rows(step: NaiveStep) -> list[tuple[int, int, Array]]:
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


def _rotated(x: Array, position: int) -> Array:
    """Pair i is the complex number x[i] + i x[i + head_dim / 2], turned by position / theta^(2i / head_dim)."""
    half = len(x) // 2
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * THETA ** (-np.arange(half) / half))
    return np.concatenate((turned.real, turned.imag))


def _rope_table(head_dim: int, num_positions: int) -> Tensor:
    angles = np.outer(np.arange(num_positions), THETA ** (-np.arange(head_dim // 2) / (head_dim // 2)))
    return torch.from_numpy(np.concatenate((np.cos(angles), np.sin(angles)), axis=1))


def _planes(kind: ScorePlanes, rows: Array) -> Array:
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


def _positions_read(step: NaiveStep, slot: int, kv_head: int, position: int) -> list[int]:
    """What the row at `position` attends to."""
    part = step.slots[slot]
    if part.phase != Phase.DRAFT:
        return list(range(position + 1))
    moved = [p + part.draft_index for p in step.moving[slot, kv_head]]
    older = [p for p in (*step.pillars[slot, kv_head], *moved, *step.lookups[slot]) if p < part.recent_start]
    return [*sorted(dict.fromkeys(older)), *range(part.recent_start, position + 1)]


def _positions_readable(step: NaiveStep, slot: int, kv_head: int) -> list[int]:
    """Cached positions that some row of the slot may read, for this head."""
    rows = step.slots[slot].positions
    return [p for p in _positions_read(step, slot, kv_head, rows.stop - 1) if (slot, p) in step.cache] if rows else []


def _attend(query: Array, entries: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    logits = np.array([query @ key for key, _ in entries]) / np.sqrt(len(query))
    weights = np.exp(logits - logits.max())
    probabilities = weights / weights.sum()
    return sum(p * value for p, (_, value) in zip(probabilities, entries, strict=True)), probabilities


def _page_table(step: NaiveStep, rng: np.random.Generator) -> NDArray[np.int64]:
    """[B, max_pages]: distinct pages from 1 on, in random order, and 0 where a slot has none."""
    counts = [-(-part.positions.stop // step.params.page_size) for part in step.slots]
    table = np.zeros((len(counts), max(counts) + 1), dtype=np.int64)
    numbers = iter(rng.permutation(sum(counts)) + 1)
    for slot, count in enumerate(counts):
        table[slot, :count] = [next(numbers) for _ in range(count)]
    return table
