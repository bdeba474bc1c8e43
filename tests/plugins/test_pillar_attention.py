from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from naive_attention import (
    TOLERANCES,
    NaiveSlot,
    assert_near,
    check_attention,
    naive_attention,
    paged,
    random_step,
)
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import (
    AttentionInputs,
    LayerInputs,
    PillarAttentionParams,
    ScoreNormalizer,
    ScorePlanes,
    StepInputs,
)
from sparsespec.plugins.pillar_attention.reference import pillar_attention

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = list(TOLERANCES)
SHAPES = [  # (query heads per KV head, KV heads, head_dim, page_size)
    (1, 2, 2, 1),
    (3, 3, 64, 16),
    (4, 2, 16, 64),
    (7, 1, 96, 16),
    (16, 2, 128, 64),
    (4, 1, 64, 1),
]


def params_of(
    shape: tuple[int, int, int, int], score_planes: ScorePlanes = "mean", score_normalizer: ScoreNormalizer = "draft"
) -> PillarAttentionParams:
    group, num_kv_heads, head_dim, page_size = shape
    return PillarAttentionParams(
        num_heads=group * num_kv_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        score_planes=score_planes,
        score_normalizer=score_normalizer,
    )


def prefill(kv_len: int, num_rows: int, score_rows: int = 0) -> NaiveSlot:
    return NaiveSlot(Phase.PREFILL, num_rows, kv_len, score_rows=score_rows)


def draft(
    kv_len: int, draft_index: int, recent_start: int, num_staying: int, num_moving: int = 0, num_lookups: int = 0
) -> NaiveSlot:
    return NaiveSlot(Phase.DRAFT, 1, kv_len, draft_index, recent_start, num_staying, 0, num_moving, num_lookups)


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
        num_staying = draw(st.sampled_from([0, recent_start]) | st.integers(0, recent_start))
        num_moving, num_lookups = draw(st.integers(0, recent_start)), draw(st.integers(0, 5))
        return draft(kv_len, draw(st.integers(0, 8)), recent_start, num_staying, num_moving, num_lookups)
    num_rows = draw(st.integers(1, 17))
    score_rows = draw(st.sampled_from([0, num_rows]) | st.integers(0, num_rows))
    return prefill(kv_len, num_rows, score_rows) if phase == Phase.PREFILL else verify(kv_len, num_rows, score_rows)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    parts=st.lists(slots(), min_size=1, max_size=5),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
    qk_norm=st.booleans(),
    score_planes=st.sampled_from(["none", "mean", "diagonal", "rows"]),
    score_normalizer=st.sampled_from(["draft", "exact"]),
    fp8_cache=st.booleans(),
)
def test_ragged_mixed_steps(
    device: str,
    shape: tuple[int, int, int, int],
    parts: list[NaiveSlot],
    dtype: torch.dtype,
    seed: int,
    qk_norm: bool,
    score_planes: ScorePlanes,
    score_normalizer: ScoreNormalizer,
    fp8_cache: bool,
) -> None:
    dtype = torch.float64 if fp8_cache else dtype
    step = random_step(params_of(shape, score_planes, score_normalizer), tuple(parts), dtype, seed, qk_norm, fp8_cache)
    check_attention(pillar_attention, step, dtype, device, seed)


# A draft with pillars, one without, one that reads all, one at its context's end; blocks of one row and of 17; an empty
# context; a chunk that ends its prompt and one that does not; idle slots first, between and last.
MIXED = (
    idle(5),
    draft(40, 0, 33, 6),
    draft(40, 3, 33, 6, num_moving=9, num_lookups=4),
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
@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "qk_norm"])
def test_every_kind_of_slot_in_one_step(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: str, qk_norm: bool
) -> None:
    step = random_step(params_of(shape), MIXED, dtype, seed=1, qk_norm=qk_norm)
    check_attention(pillar_attention, step, dtype, device, seed=2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "qk_norm"])
def test_every_kind_of_slot_over_an_fp8_cache(shape: tuple[int, int, int, int], device: str, qk_norm: bool) -> None:
    step = random_step(params_of(shape), MIXED, torch.float64, seed=1, qk_norm=qk_norm, fp8_cache=True)
    check_attention(pillar_attention, step, torch.float64, device, seed=2)


@pytest.mark.parametrize("device", DEVICES)
def test_step_of_idle_slots(device: str) -> None:
    step = random_step(params_of(SHAPES[0]), (idle(3), idle(0)), torch.float32, seed=1)
    check_attention(pillar_attention, step, torch.float32, device, seed=2)


def read_by_hand(device: str) -> AttentionInputs[Tensor]:
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
        num_staying=ints(2),
        num_moving=ints(0),
        lookups=ints(-1)[None],
        num_lookups=ints(0),
        page_table=ints(3, 1, 0, 2)[None],
        rope_table=torch.ones(8, 2, dtype=torch.float64, device=device),
    )
    layer = LayerInputs(
        kv_pool=pool,
        draft_lse=torch.zeros(1, 3, 1, dtype=torch.float64, device=device),
        pillars=ints(0, 3, -1)[None, None],
        scores=torch.zeros(1, 1, 1, 8, dtype=torch.float64, device=device),
    )
    return AttentionInputs(qkv, None, layer, step, plan=ints())


BY_HAND = PillarAttentionParams(num_heads=1, num_kv_heads=1, head_dim=2, page_size=2)


@pytest.mark.parametrize("device", DEVICES)
def test_draft_row_worked_by_hand(device: str) -> None:
    """With equal keys the output is the mean of the values read: pillars 0 and 3, then 4, 5 and the row itself.

    Their five logits are 0: the draft, number 2, leaves the logarithm of 5.
    """
    inputs = read_by_hand(device)
    output = pillar_attention(BY_HAND, inputs)
    assert output.tolist() == [[pytest.approx((1 + 8 + 16 + 32 + 64) / 5)] * 2]
    assert inputs.layer.kv_pool[2, 1, 0].tolist() == [[64.0, 64.0], [0.0, 0.0]]
    assert inputs.layer.draft_lse.flatten().tolist() == [0.0, 0.0, pytest.approx(math.log(5))]


@pytest.mark.parametrize("device", DEVICES)
def test_moving_pillars_and_lookups_worked_by_hand(device: str) -> None:
    """Pillar 0; one that moves from 0 and one from 2, by two; lookups of 0, 3 and of 5, which is recent. Each once."""
    inputs = read_by_hand(device)
    pillars = torch.tensor([[[0, 0, 2, -1]]], dtype=torch.int32, device=device)
    inputs = replace(inputs, layer=replace(inputs.layer, pillars=pillars))
    ints = torch.tensor([[1, 2, 3], [0, 3, 5]], dtype=torch.int32, device=device)
    moving = replace(inputs.step, num_staying=ints[0, :1], num_moving=ints[0, 1:2])
    output = pillar_attention(BY_HAND, replace(inputs, step=moving))
    assert output.tolist() == [[pytest.approx((1 + 4 + 16 + 32 + 64) / 5)] * 2]
    looking = replace(moving, lookups=ints[1:], num_lookups=ints[0, 2:])
    output = pillar_attention(BY_HAND, replace(inputs, step=looking))
    assert output.tolist() == [[pytest.approx((1 + 4 + 8 + 16 + 32 + 64) / 6)] * 2]


@pytest.mark.parametrize("device", DEVICES)
def test_unread_keys_do_not_matter_however_large(device: str) -> None:
    """A draft row that weighed an unread key would see nothing else."""
    dtype = torch.float32
    step = random_step(params_of(SHAPES[2]), (draft(40, 3, 30, 5),), dtype, seed=3)
    found = paged(step, dtype, device, seed=4)
    huge = replace(found.layer, kv_pool=found.layer.kv_pool.nan_to_num(nan=1e30))
    output = pillar_attention(step.params, replace(found, layer=huge))
    assert_near(output, torch.from_numpy(naive_attention(step).output), TOLERANCES[dtype])


def scored_by_hand(device: str, draft_lse: list[float]) -> AttentionInputs[Tensor]:
    """Three verified rows at 1, 2 and 3 whose logits are 0, but for those of position 0, which are the logarithm of 8.

    draft_lse: of the first drafts.
    """
    inputs = read_by_hand(device)
    ints = torch.tensor([0, 3, 1], dtype=torch.int32, device=device)
    inputs.layer.kv_pool[3, 0, 0, 0] = torch.tensor([math.log(8) * math.sqrt(2), 0.0])
    qkv = torch.zeros(3, 6, dtype=torch.float64, device=device)
    qkv[:, 0] = 1.0
    rope = torch.tensor([[1.0, 0.0]] * 8, dtype=torch.float64, device=device)  # turns nothing
    step = replace(
        inputs.step,
        row_start=ints[:2],
        phase=ints[:1] + int(Phase.VERIFY),
        draft_index=ints[:1],
        score_rows=ints[1:2],
        kv_len=ints[2:],
        rope_table=rope,
    )
    left = torch.tensor(draft_lse, dtype=torch.float64, device=device)[None, :, None]
    layer = replace(inputs.layer, draft_lse=left, scores=torch.zeros(1, 3, 1, 8, dtype=torch.float64, device=device))
    return replace(inputs, qkv=qkv, layer=layer, step=step)


@pytest.mark.parametrize("device", DEVICES)
def test_scores_by_drafts_worked_by_hand(device: str) -> None:
    """The first draft read position 0 and itself, and left log 9. The second missed position 0 and left log 2.

    So position 0 would be four times certain to the second row. The third row borrows from the second: two drafts.
    """
    inputs = scored_by_hand(device, [math.log(9), math.log(2), math.nan])
    pillar_attention(replace(BY_HAND, score_planes="rows"), inputs)
    expected = torch.tensor([[8 / 9, 1 / 9, 0, 0], [1, 1 / 2, 1 / 2, 0], [1, 1 / 2, 1 / 2, 1 / 2]])
    assert_near(inputs.layer.scores[0, :, 0, :4], expected.double(), 1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("phase", [Phase.PREFILL, Phase.VERIFY])
def test_rows_without_drafts_are_scored_exactly(phase: Phase, device: str) -> None:
    """The rows of a prompt, whatever drafts left in the slot; and those of a verification on request."""
    inputs = scored_by_hand(device, [math.nan] * 3)
    params = replace(BY_HAND, score_planes="rows", score_normalizer="exact" if phase == Phase.VERIFY else "draft")
    phases = torch.full_like(inputs.step.phase, int(phase))
    pillar_attention(params, replace(inputs, step=replace(inputs.step, phase=phases)))
    expected = torch.tensor([[8 / 9, 1 / 9, 0, 0], [8 / 10, 1 / 10, 1 / 10, 0], [8 / 11, 1 / 11, 1 / 11, 1 / 11]])
    assert_near(inputs.layer.scores[0, :, 0, :4], expected.double(), 1e-6)


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
    far = replace(
        found,
        layer=replace(found.layer, kv_pool=pool),
        step=replace(found.step, page_table=found.step.page_table + moved),
    )
    output = pillar_attention(params, far)
    assert_near(output, torch.from_numpy(naive_attention(step).output), TOLERANCES[dtype])
