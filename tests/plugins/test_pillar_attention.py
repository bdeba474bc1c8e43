from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from naive_attention import Attention, NaiveSlot, NaiveStep, Paged, naive_attention, paged, random_step
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention import reference
from sparsespec.plugins.pillar_attention.inputs import LayerInputs, PillarAttentionParams, StepInputs
from sparsespec.plugins.pillar_attention.reference import pillar_attention

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Largest error of outputs and keys of order one, and largest relative error of scores: the roundings of rotated Q and K
# and of the output to 11 and 8 bits, and in fp32 and fp64 also those of the sums.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
DTYPES = list(TOLERANCES)
SHAPES = [  # (query heads per KV head, KV heads, head_dim, page_size)
    (1, 2, 2, 1),
    (3, 3, 64, 16),
    (4, 2, 16, 64),
    (7, 1, 96, 16),
    (16, 2, 128, 64),
    (4, 1, 64, 1),
]


def params_of(shape: tuple[int, int, int, int]) -> PillarAttentionParams:
    group, num_kv_heads, head_dim, page_size = shape
    return PillarAttentionParams(group * num_kv_heads, num_kv_heads, head_dim, page_size)


def prefill(kv_len: int, num_rows: int, score_rows: int = 0) -> NaiveSlot:
    return NaiveSlot(Phase.PREFILL, num_rows, kv_len, score_rows=score_rows)


def draft(kv_len: int, draft_index: int, recent_start: int, num_pillars: int) -> NaiveSlot:
    return NaiveSlot(Phase.DRAFT, 1, kv_len, draft_index, recent_start, num_pillars)


def verify(kv_len: int, num_rows: int, score_rows: int = 0) -> NaiveSlot:
    # What the last drafts read is of no account to a verification.
    return NaiveSlot(Phase.VERIFY, num_rows, kv_len, 0, kv_len // 2, kv_len // 4, score_rows)


def idle(kv_len: int) -> NaiveSlot:
    return NaiveSlot(Phase.IDLE, 0, kv_len)


@st.composite
def slots(draw: st.DrawFn) -> NaiveSlot:
    phase = draw(st.sampled_from(Phase))
    kv_len = draw(st.sampled_from([0, 1, 15, 16, 17]) | st.integers(0, 70))
    if phase == Phase.IDLE:
        return idle(kv_len)
    if phase == Phase.DRAFT:
        recent_start = draw(st.sampled_from([0, kv_len]) | st.integers(0, kv_len))
        num_pillars = draw(st.sampled_from([0, recent_start]) | st.integers(0, recent_start))
        return draft(kv_len, draw(st.integers(0, 8)), recent_start, num_pillars)
    num_rows = draw(st.integers(1, 17))
    score_rows = draw(st.sampled_from([0, num_rows]) | st.integers(0, num_rows))
    return prefill(kv_len, num_rows, score_rows) if phase == Phase.PREFILL else verify(kv_len, num_rows, score_rows)


def check(attention: Attention, step: NaiveStep, dtype: torch.dtype, device: str, seed: int) -> None:
    """Run `attention` on a paged copy of `step`; AssertionError unless everything it returns and leaves is right."""
    given_step = paged(step, dtype, device, seed)
    pool_before = given_step.layer.kv_pool.clone()
    output = attention(step.params, given_step.qkv, given_step.layer, given_step.step)
    answer = naive_attention(step)
    assert output.dtype == dtype
    assert_near(output, torch.from_numpy(answer.output), TOLERANCES[dtype])
    check_pool(step, given_step, pool_before, TOLERANCES[dtype])
    scores = torch.full_like(given_step.layer.scores, torch.nan).cpu().double()
    for slot, expected in answer.scores.items():
        scores[given_step.step.score_index[slot], :, : expected.shape[1]] = torch.from_numpy(expected)
    found = given_step.layer.scores.cpu().double()
    torch.testing.assert_close(found, scores, rtol=TOLERANCES[dtype], atol=0, equal_nan=True)


def check_pool(step: NaiveStep, after: Paged, before: Tensor, tolerance: float) -> None:
    """K and V of the rows are in place; every other bit of the pool is as it was."""
    keys, values = before.clone(), before.clone()
    pages, size = after.step.page_table.tolist(), step.params.page_size
    for (slot, position), (key, value) in naive_attention(step).written.items():
        page, offset = pages[slot][position // size], position % size
        keys[page, 0, :, offset] = torch.from_numpy(key).to(keys)
        values[page, 1, :, offset] = torch.from_numpy(value).to(values)
    pool = after.layer.kv_pool
    torch.testing.assert_close(pool[:, 1], values[:, 1], rtol=0, atol=0, equal_nan=True)
    assert_near(pool[:, 0], keys[:, 0].double().cpu(), tolerance)
    untouched = keys[:, 0].isnan() | (keys[:, 0] == before[:, 0])
    torch.testing.assert_close(pool[:, 0][untouched], before[:, 0][untouched], rtol=0, atol=0, equal_nan=True)


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    parts=st.lists(slots(), min_size=1, max_size=5),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
)
def test_ragged_mixed_steps(
    device: str, shape: tuple[int, int, int, int], parts: list[NaiveSlot], dtype: torch.dtype, seed: int
) -> None:
    check(pillar_attention, random_step(params_of(shape), tuple(parts), dtype, seed), dtype, device, seed)


# A draft with pillars, one without, one that reads all, one at its context's end; blocks of one row and of 17; an empty
# context; a chunk that ends its prompt and one that does not; idle slots first, between and last.
MIXED = (
    idle(5),
    draft(40, 0, 33, 6),
    verify(37, 17, score_rows=17),
    draft(24, 3, 16, 0),
    prefill(0, 1, score_rows=1),
    idle(0),
    prefill(31, 16),
    draft(20, 1, 0, 0),
    verify(48, 1, score_rows=1),
    draft(19, 2, 19, 19),
    prefill(3, 14, score_rows=9),
    draft(0, 2, 0, 0),
    idle(30),
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_kind_of_slot_in_one_step(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> None:
    check(pillar_attention, random_step(params_of(shape), MIXED, dtype, seed=1), dtype, device, seed=2)


@pytest.mark.parametrize("device", DEVICES)
def test_step_of_idle_slots(device: str) -> None:
    check(pillar_attention, random_step(params_of(SHAPES[0]), (idle(3), idle(0)), torch.float32, 1), torch.float32, device, 2)


def read_by_hand(device: str) -> tuple[Tensor, LayerInputs[Tensor], StepInputs[Tensor]]:
    """One draft row at position 6 over six tokens whose K are 0 and whose V are 1, 2, 4, ..., in pages of two."""

    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    pool = torch.zeros(4, 2, 1, 2, 2, dtype=torch.float64, device=device)
    for position, page in enumerate((3, 3, 1, 1, 0, 0)):
        pool[page, 1, 0, position % 2] = 2.0**position
    qkv = torch.tensor([[0.0, 0.0, 0.0, 0.0, 64.0, 64.0]], dtype=torch.float64, device=device)
    step = StepInputs(
        row_start=ints(0, 1),
        phase=ints(Phase.DRAFT),
        draft_index=ints(2),
        score_rows=ints(0),
        score_index=ints(0),
        kv_len=ints(4),
        recent_start=ints(4),
        num_pillars=ints(2),
        page_table=ints(3, 1, 0, 2)[None],
        rope_table=torch.ones(8, 2, dtype=torch.float64, device=device),
    )
    scores = torch.zeros(1, 1, 8, dtype=torch.float64, device=device)
    return qkv, LayerInputs(pool, ints(0, 3, -1)[None, None], scores), step


@pytest.mark.parametrize("device", DEVICES)
def test_draft_row_worked_by_hand(device: str) -> None:
    """With equal keys the output is the mean of the values read: pillars 0 and 3, then 4, 5 and the row itself."""
    qkv, layer, step = read_by_hand(device)
    output = pillar_attention(PillarAttentionParams(1, 1, 2, 2), qkv, layer, step)
    assert output.tolist() == [[pytest.approx((1 + 8 + 16 + 32 + 64) / 5)] * 2]
    assert layer.kv_pool[2, 1, 0].tolist() == [[64.0, 64.0], [0.0, 0.0]]


@pytest.mark.parametrize("device", DEVICES)
def test_unread_keys_do_not_matter_however_large(device: str) -> None:
    """A draft row that weighed an unread key would see nothing else."""
    dtype = torch.float32
    step = random_step(params_of(SHAPES[2]), (draft(40, 3, 30, 5),), dtype, seed=3)
    found = paged(step, dtype, device, seed=4)
    huge = replace(found.layer, kv_pool=found.layer.kv_pool.nan_to_num(nan=1e30))
    output = pillar_attention(step.params, found.qkv, huge, found.step)
    assert_near(output, torch.from_numpy(naive_attention(step).output), TOLERANCES[dtype])


@pytest.mark.gpu
def test_pool_of_more_than_2_to_the_31_elements() -> None:
    """The last page's offset does not fit in 32 bits."""
    params, dtype = params_of(SHAPES[4]), torch.bfloat16
    step = random_step(params, (verify(70, 9, score_rows=9), draft(90, 1, 80, 20)), dtype, seed=5)
    found = paged(step, dtype, "cuda", seed=6)
    small = found.layer.kv_pool
    num_pages = 2**31 // small[0].numel() + len(small)
    pool = torch.full((num_pages, *small.shape[1:]), torch.nan, dtype=dtype, device="cuda")
    moved = num_pages - len(small)
    pool[moved:] = small
    output = pillar_attention(
        params,
        found.qkv,
        replace(found.layer, kv_pool=pool),
        replace(found.step, page_table=found.step.page_table + moved),
    )
    assert_near(output, torch.from_numpy(naive_attention(step).output), TOLERANCES[dtype])


Mutate = Callable[[pytest.MonkeyPatch], Attention]


def with_step(change: Callable[[StepInputs[Tensor]], StepInputs[Tensor]]) -> Mutate:
    """An implementation that misreads its step."""

    def mutant(
        params: PillarAttentionParams, qkv: Tensor, layer: LayerInputs[Tensor], step: StepInputs[Tensor]
    ) -> Tensor:
        return pillar_attention(params, qkv, layer, change(step))

    return lambda _: mutant


def with_part(name: str, part: Callable[..., object]) -> Mutate:
    """The reference with one of its functions replaced."""

    def mutate(monkeypatch: pytest.MonkeyPatch) -> Attention:
        monkeypatch.setattr(reference, name, part)
        return pillar_attention

    return mutate


def query_heads_by_remainder(
    params: PillarAttentionParams, qkv: Tensor, layer: LayerInputs[Tensor], step: StepInputs[Tensor]
) -> Tensor:
    """Query head h reads KV head h % num_kv_heads instead of h // group."""
    heads = qkv.unflatten(1, (-1, params.head_dim)).clone()
    order = torch.arange(params.num_heads).unflatten(0, (-1, params.num_kv_heads)).T.flatten()
    heads[:, : params.num_heads] = heads[:, order]
    output = pillar_attention(params, heads.flatten(1), layer, step).unflatten(1, (-1, params.head_dim))
    return output[:, order.argsort()].flatten(1)


def restore_drafted_keys(
    params: PillarAttentionParams, qkv: Tensor, layer: LayerInputs[Tensor], step: StepInputs[Tensor]
) -> Tensor:
    """Attends to what the verification computed, but leaves the drafts' K and V in the pool."""
    drafted = layer.kv_pool.clone()
    output = pillar_attention(params, qkv, layer, step)
    layer.kv_pool.copy_(torch.where(drafted.isnan(), layer.kv_pool, drafted))
    return output


append, attend, rotate = reference._append, reference._attend, reference._rotate


def append_only_the_newest(
    params: PillarAttentionParams, kv_pool: Tensor, pages: Tensor, positions: Tensor, k: Tensor, v: Tensor
) -> None:
    append(params, kv_pool, pages, positions[-1:], k[-1:], v[-1:])


def rotate_neighbours(x: Tensor, rope: Tensor) -> Tensor:
    """Pairs (x[2i], x[2i + 1]), as llama.cpp stores them."""
    halves = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return rotate(halves, rope).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


STEP_MUTATIONS: dict[str, tuple[Mutate, tuple[NaiveSlot, ...]]] = {
    "recent_start too high": (
        with_step(lambda step: replace(step, recent_start=step.recent_start + 1)),
        (draft(40, 2, 30, 5),),
    ),
    "recent_start too low": (
        with_step(lambda step: replace(step, recent_start=step.recent_start - 1)),
        (draft(40, 2, 30, 0),),
    ),
    "one pillar too few": (
        with_step(lambda step: replace(step, num_pillars=step.num_pillars - 1)),
        (draft(40, 2, 30, 5),),
    ),
    "draft number ignored": (
        with_step(lambda step: replace(step, draft_index=step.draft_index * 0)),
        (draft(40, 2, 30, 5),),
    ),
    "drafts read everything": (
        with_step(lambda step: replace(step, phase=torch.full_like(step.phase, Phase.VERIFY))),
        (draft(40, 0, 30, 5),),
    ),
    "one scored row too few": (
        with_step(lambda step: replace(step, score_rows=step.score_rows - 1)),
        (verify(20, 5, score_rows=5),),
    ),
    "scores in the wrong place": (
        with_step(lambda step: replace(step, score_index=step.score_index.roll(1))),
        (verify(20, 5, score_rows=5), verify(20, 3)),
    ),
    "rows of the slot before": (
        with_step(lambda step: replace(step, row_start=torch.tensor([0, 3, 8], dtype=torch.int32))),
        (verify(20, 5), verify(20, 3)),
    ),
    "causal mask one too far": (
        with_part("_attend", lambda q, k, v, read, positions: attend(q, k, v, read, positions + 1)),
        (prefill(6, 4),),
    ),
    "causal mask one too short": (
        with_part("_attend", lambda q, k, v, read, positions: attend(q, k, v, read, positions - 1)),
        (prefill(6, 4),),
    ),
    "drafted K and V not rewritten": (with_part("_append", append_only_the_newest), (verify(12, 5),)),
    "rewrite not kept": (lambda _: restore_drafted_keys, (verify(12, 5),)),
    "wrong query head": (lambda _: query_heads_by_remainder, (verify(12, 5),)),
    "rope of neighbours": (with_part("_rotate", rotate_neighbours), (verify(12, 5),)),
    "rope turned backwards": (with_part("_rotate", lambda x, rope: rotate(x, rope * rope.new_tensor([1] * 8 + [-1] * 8))), (verify(12, 5),)),
}


@pytest.mark.parametrize("name", STEP_MUTATIONS)
def test_the_checks_catch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault alone, in the smallest step that shows it, in the least precise type."""
    mutate, parts = STEP_MUTATIONS[name]
    step = random_step(params_of((4, 2, 16, 16)), parts, torch.bfloat16, seed=7)
    check(pillar_attention, step, torch.bfloat16, "cpu", seed=8)
    mutant = mutate(monkeypatch)
    with pytest.raises((AssertionError, IndexError)):
        check(mutant, step, torch.bfloat16, "cpu", seed=8)
