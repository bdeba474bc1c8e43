"""Judges every implementation of PillarAttention: random steps, laid out as the op takes them, against naive_step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from naive_step import (
    THETA,
    Array,
    NaiveAnswer,
    NaiveSlot,
    NaiveStep,
    kept,
    log_sum_exp,
    logits_of,
    naive_attention,
    planes_of,
    positions_read,
    rotated,
    rows_of,
    written_by,
)
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import (
    AttentionInputs,
    LayerInputs,
    PillarAttentionParams,
    QkNorm,
    StepInputs,
)

Attention = Callable[[PillarAttentionParams, AttentionInputs[Tensor]], Tensor]

# Largest error of outputs, keys and log-sum-exps of order one, and largest relative error of scores near 1: the
# roundings of rotated Q and K and of the output to 11 and 8 bits, and in fp32 and fp64 also those of the sums.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def random_step(
    params: PillarAttentionParams,
    slots: tuple[NaiveSlot, ...],
    dtype: torch.dtype,
    seed: int,
    qk_norm: bool = False,
    fp8_cache: bool = False,
) -> NaiveStep:
    """Normal numbers rounded to dtype, also the weights of norms, and random pillars before recent_start.

    draft_lse has room for about as many drafts as the slots have, and is what those of verified rows may have left.
    fp8_cache: with another scale for every head. Only fp64 rounds to the same numbers as the judge.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int, mean: float = 0.0, deviation: float = 1.0) -> Array:
        return torch.from_numpy(rng.normal(mean, deviation, shape)).to(dtype).double().numpy()

    def norm() -> Array:
        # Below 1, so that three roundings of a normed key stay in the tolerance made for one.
        return normal(params.head_dim, mean=0.7, deviation=0.2)

    heads, size = params.num_kv_heads, params.head_dim
    kv_scale = rng.uniform(0.5, 2, (2, heads)).astype(np.float32).astype(np.float64) if fp8_cache else None
    step = NaiveStep(
        params=params,
        slots=slots,
        qkv=normal(sum(part.num_rows for part in slots), (params.num_heads + 2 * heads) * size),
        cache={
            (slot, p): kept(kv_scale, normal(heads, size), normal(heads, size))
            for slot, part in enumerate(slots)
            for p in part.cached
        },
        pillars=_chosen(rng, slots, heads, [part.num_staying for part in slots]),
        moving=_chosen(rng, slots, heads, [part.num_moving for part in slots]),
        lookups={slot: rng.integers(0, part.kv_len + 1, part.num_lookups).tolist() for slot, part in enumerate(slots)},
        qk_norm=QkNorm(norm(), norm()) if qk_norm else None,
        draft_lse=np.full((len(slots), _some_draft_len(rng, slots), params.num_heads), np.nan),
        kv_scale=kv_scale,
    )
    return replace(step, draft_lse=_drafted_lse(step, rng))


def _some_draft_len(rng: np.random.Generator, slots: tuple[NaiveSlot, ...]) -> int:
    """Room for all drafts of all slots, for one more, or for one too few."""
    drafted = [part.draft_index + 1 for part in slots if part.phase == Phase.DRAFT]
    verified = [part.num_rows - 1 for part in slots if part.phase == Phase.VERIFY]
    return max(1, max([*drafted, *verified], default=1) + int(rng.integers(-1, 2)))


def _drafted_lse(step: NaiveStep, rng: np.random.Generator) -> Array:
    """In fp32, over a random half of what each verified row sees and itself, as if its draft had read that.

    The last row of a verification was no draft: there is NaN in its place, and everywhere where nobody asks for it.
    """
    lse = step.draft_lse.copy()
    if step.params.score_normalizer == "exact":
        return lse
    cache = step.cache | written_by(step)
    for slot, position, heads in rows_of(step):
        part = step.slots[slot]
        row = position - part.positions.start
        if part.phase == Phase.VERIFY and row < min(part.num_rows - 1, lse.shape[1]):
            seen = [*np.flatnonzero(rng.random(position) < 0.5).tolist(), position]
            for head in range(step.params.num_heads):
                kv_head = head // (step.params.num_heads // step.params.num_kv_heads)
                logits = logits_of(rotated(heads[head], position), [cache[slot, p][0][kv_head] for p in seen])
                lse[slot, row, head] = np.float32(log_sum_exp(logits))
    return lse


def _chosen(
    rng: np.random.Generator, slots: tuple[NaiveSlot, ...], heads: int, counts: list[int]
) -> dict[tuple[int, int], list[int]]:
    """So many distinct positions before recent_start, for every slot and head."""
    return {
        (slot, head): sorted(rng.choice(part.recent_start, count, replace=False).tolist())
        for slot, (part, count) in enumerate(zip(slots, counts, strict=True))
        for head in range(heads)
    }


def paged(step: NaiveStep, dtype: torch.dtype, device: str, seed: int) -> AttentionInputs[Tensor]:
    """The step as the op takes it, with NaN wherever nothing lives that it may read, and an empty plan.

    The cache is scattered over pages in random order. Page 0 is nobody's: unused places of the page table name it.
    """
    rng = np.random.default_rng(seed)
    pages, num_slots = _page_table(step, rng), len(step.slots)
    score_index = rng.permutation(num_slots + 2)[:num_slots]

    def floats(values: Array) -> Tensor:
        return torch.from_numpy(values).to(device, dtype)

    norm = step.qk_norm
    return AttentionInputs(
        qkv=floats(step.qkv),
        qk_norm=None if norm is None else QkNorm(floats(norm.q_norm), floats(norm.k_norm)),
        layer=_layer_inputs(step, pages, dtype, device),
        plan=_ints([], device),
        step=_step_inputs(step, pages, score_index, _exact(dtype), device),
    )


def check_attention(attention: Attention, step: NaiveStep, dtype: torch.dtype, device: str, seed: int) -> None:
    """Run `attention` on a paged copy of `step`; AssertionError unless everything it returns and leaves is right."""
    given = paged(step, dtype, device, seed)
    pool_before = given.layer.kv_pool.clone()
    output = attention(step.params, given)
    answer = naive_attention(step)
    torch.testing.assert_close(output, output.to(given.qkv), rtol=0, atol=0)
    assert_near(output, torch.from_numpy(answer.output), TOLERANCES[dtype])
    _check_pool(step, given, pool_before, TOLERANCES[dtype])
    _check_draft_lse(step, answer, given, TOLERANCES[dtype])
    scores = torch.full_like(given.layer.scores, torch.nan).cpu().double()
    places = given.step.score_index.tolist()
    for slot, rows in answer.scores.items() if step.params.score_planes != "none" else ():
        expected = planes_of(step.params.score_planes, rows)
        scores[places[slot], : len(expected), :, : expected.shape[2]] = torch.from_numpy(expected)
    _check_scores(given.layer.scores.cpu().double(), scores, TOLERANCES[dtype])


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=tolerance, equal_nan=True)


def _check_draft_lse(step: NaiveStep, answer: NaiveAnswer, after: AttentionInputs[Tensor], tolerance: float) -> None:
    """Those of the step's drafts are in place; every other bit is as it was."""
    found, expected = after.layer.draft_lse, torch.from_numpy(answer.draft_lse)
    assert_near(found, expected, tolerance)
    before = torch.from_numpy(step.draft_lse).to(found)
    untouched = torch.from_numpy((answer.draft_lse == step.draft_lse) | np.isnan(answer.draft_lse))
    torch.testing.assert_close(found[untouched], before[untouched], rtol=0, atol=0, equal_nan=True)


def _check_scores(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """The relative error of a score is the error of its logit, and larger logits have larger errors."""
    torch.testing.assert_close(found.isnan(), expected.isnan())
    known = ~expected.isnan()
    limit = tolerance * (expected + torch.xlogy(expected, expected).abs() / 8)[known]
    beyond = ((found - expected).abs()[known] - limit).clamp(min=0)
    torch.testing.assert_close(beyond, torch.zeros_like(beyond), rtol=0, atol=0)


def _check_pool(step: NaiveStep, after: AttentionInputs[Tensor], before: Tensor, tolerance: float) -> None:
    """K and V of the rows are in place; every other bit of the pool is as it was."""
    keys, values, untouched = before.clone(), before.clone(), torch.ones_like(before[:, 0], dtype=torch.bool)
    pages, size = after.step.page_table.tolist(), step.params.page_size
    for (slot, position), written in naive_attention(step).written.items():
        page, offset = pages[slot][position // size], position % size
        key, value = _stored(step, written)
        keys[page, 0, :, offset] = torch.from_numpy(key).to(keys)
        values[page, 1, :, offset] = torch.from_numpy(value).to(values)
        untouched[page, :, offset] = False
    pool = after.layer.kv_pool
    torch.testing.assert_close(pool[:, 1], values[:, 1], rtol=0, atol=0, equal_nan=True)
    assert_near(pool[:, 0], keys[:, 0].double().cpu(), tolerance)
    torch.testing.assert_close(pool[:, 0][untouched], before[:, 0][untouched], rtol=0, atol=0, equal_nan=True)


def _stored(step: NaiveStep, kept_kv: tuple[Array, Array]) -> tuple[Array, Array]:
    """What the pool holds of K and V; in FP8 the quotient is a number of the format but for its last bit."""
    if step.kv_scale is None:
        return kept_kv
    return kept_kv[0] / step.kv_scale[0][:, None], kept_kv[1] / step.kv_scale[1][:, None]


def _ints(values: object, device: str) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.int32, device=device)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What scores, log-sum-exps and the RoPE table are kept in beside K and V of dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _num_positions(step: NaiveStep) -> int:
    """Of the longest slot."""
    return max(part.positions.stop for part in step.slots)


def _layer_inputs(step: NaiveStep, pages: NDArray[np.int64], dtype: torch.dtype, device: str) -> LayerInputs[Tensor]:
    exact = _exact(dtype)
    return LayerInputs(
        kv_pool=_kv_pool(step, pages, dtype).to(device),
        draft_lse=torch.from_numpy(step.draft_lse).to(device, exact),
        pillars=_ints(_pillars(step), device),
        scores=_unwritten_scores(step, exact).to(device),
        kv_scale=None if step.kv_scale is None else torch.from_numpy(step.kv_scale).to(device, torch.float32),
    )


def _step_inputs(
    step: NaiveStep, pages: NDArray[np.int64], score_index: NDArray[np.int64], exact: torch.dtype, device: str
) -> StepInputs[Tensor]:
    slots = step.slots

    def ints(values: object) -> Tensor:
        return _ints(values, device)

    return StepInputs(
        row_start=ints(np.cumsum([0, *(part.num_rows for part in slots)])),
        phase=ints([part.phase for part in slots]),
        draft_index=ints([part.draft_index for part in slots]),
        score_rows=ints([part.score_rows for part in slots]),
        score_index=ints(score_index),
        kv_len=ints([part.kv_len for part in slots]),
        recent_start=ints([part.recent_start for part in slots]),
        num_staying=ints([part.num_staying for part in slots]),
        num_moving=ints([part.num_moving for part in slots]),
        lookups=ints(_lookups(step)),
        num_lookups=ints([part.num_lookups for part in slots]),
        page_table=ints(pages),
        rope_table=_rope_table(step.params.head_dim, _num_positions(step)).to(device, exact),
    )


def _kv_pool(step: NaiveStep, pages: NDArray[np.int64], dtype: torch.dtype) -> Tensor:
    """One page more than pages names, and NaN but for the cached keys and values that some row may read."""
    params = step.params
    shape = (int(pages.max()) + 2, 2, params.num_kv_heads, params.page_size, params.head_dim)
    pool = torch.full(shape, torch.nan, dtype=dtype if step.kv_scale is None else torch.float8_e4m3fn)
    for slot in range(len(step.slots)):
        for head in range(params.num_kv_heads):
            for position in _positions_readable(step, slot, head):
                page, offset = pages[slot, position // params.page_size], position % params.page_size
                for index, vector in enumerate(_stored(step, step.cache[slot, position])):
                    pool[page, index, head, offset] = torch.from_numpy(vector[head])
    return pool


def _pillars(step: NaiveStep) -> NDArray[np.int64]:
    """[B, num_kv_heads, max_budget]: -1 where there are none, in one place at least."""
    width = max(part.num_staying + part.num_moving for part in step.slots) + 1
    pillars = np.full((len(step.slots), step.params.num_kv_heads, width), -1)
    for (slot, head), staying in step.pillars.items():
        chosen = [*staying, *step.moving[slot, head]]
        pillars[slot, head, : len(chosen)] = chosen
    return pillars


def _lookups(step: NaiveStep) -> NDArray[np.int64]:
    """[B, max_lookups]: -1 where there are none, in one place at least."""
    lookups = np.full((len(step.slots), max(part.num_lookups for part in step.slots) + 1), -1)
    for slot, part in enumerate(step.slots):
        lookups[slot, : part.num_lookups] = step.lookups[slot]
    return lookups


def _unwritten_scores(step: NaiveStep, exact: torch.dtype) -> Tensor:
    """Room for the scores of two slots more than there are, and one plane where nobody asks for any."""
    most_rows = max(1, *(part.score_rows for part in step.slots))
    planes = {"none": 1, "mean": 1, "diagonal": 2, "rows": most_rows}[step.params.score_planes]
    shape = (len(step.slots) + 2, planes, step.params.num_kv_heads, _num_positions(step))
    return torch.full(shape, torch.nan, dtype=exact)


def _rope_table(head_dim: int, num_positions: int) -> Tensor:
    angles = np.outer(np.arange(num_positions), THETA ** (-np.arange(head_dim // 2) / (head_dim // 2)))
    return torch.from_numpy(np.concatenate((np.cos(angles), np.sin(angles)), axis=1))


def _positions_readable(step: NaiveStep, slot: int, kv_head: int) -> list[int]:
    """Cached positions that some row of the slot may read, for this head."""
    rows = step.slots[slot].positions
    return [p for p in positions_read(step, slot, kv_head, rows.stop - 1) if (slot, p) in step.cache] if rows else []


def _page_table(step: NaiveStep, rng: np.random.Generator) -> NDArray[np.int64]:
    """[B, max_pages]: distinct pages from 1 on, in random order, and 0 where a slot has none."""
    counts = [-(-part.positions.stop // step.params.page_size) for part in step.slots]
    table = np.zeros((len(counts), max(counts) + 1), dtype=np.int64)
    numbers = iter(rng.permutation(sum(counts)) + 1)
    for slot, count in enumerate(counts):
        table[slot, :count] = [next(numbers) for _ in range(count)]
    return table
