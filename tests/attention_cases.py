"""Random steps for PillarAttention on a GPU, of any size.

They are too large for the judge in naive_attention. That one judges the torch reference, and the kernels are compared
with the reference.

Whatever a step must not read is NaN: other tokens' keys and values, unused pages, outputs and scores before the launch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from naive_attention import NaiveSlot
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import (
    AttentionInputs,
    LayerInputs,
    PillarAttentionParams,
    QkNorm,
    StepInputs,
    num_score_planes,
)
from sparsespec.plugins.pillar_attention.reference import to_fp8

MAX_DRAFT_LEN = 16
MAX_LOOKUPS = 16


@dataclass(frozen=True)
class CaseKind:
    """What is the same for all slots of a step."""

    params: PillarAttentionParams
    dtype: torch.dtype
    seed: int
    score_dtype: torch.dtype = torch.float32
    qk_norm: bool = False
    huge_key: bool = False  # one key of every slot is far longer than the others
    rope_scale: float = 1.0  # of the table's cosines and sines, as YaRN has one
    first_page: int = 0  # the pool has so many pages before those in use
    kv_fp8: bool = False  # the pool is float8_e4m3fn, with a scale of 0.5 to 2 for each head


def make_case(kind: CaseKind, slots: tuple[NaiveSlot, ...]) -> AttentionInputs[Tensor]:
    """The step on the current GPU; `plan` is empty. Deterministic in the seed."""
    device = torch.device("cuda")
    rng = torch.Generator(device).manual_seed(kind.seed)
    params, heads, size = kind.params, kind.params.num_kv_heads, kind.params.head_dim
    num_rows = sum(slot.num_rows for slot in slots)
    longest = max(slot.positions.stop for slot in slots)
    pages = _page_table(kind, slots, rng)
    width = (params.num_heads + 2 * heads) * size
    step = _step(slots, pages, rng, rope_table(size, longest) * kind.rope_scale)
    pillars = _pillars(kind, slots, rng)
    kv_scale = 0.5 * 4 ** torch.rand(2, heads, generator=rng, device=device) if kind.kv_fp8 else None
    layer = LayerInputs(
        kv_pool=_pool(kind, slots, step, pillars, rng, kv_scale),
        draft_lse=_draft_lse(kind, slots, rng),
        pillars=pillars,
        scores=_scores(kind, slots, longest),
        kv_scale=kv_scale,
    )
    qkv = torch.randn(num_rows, width, generator=rng, device=device).to(kind.dtype)
    norms = 0.7 + 0.2 * torch.randn(2, size, generator=rng, device=device).to(kind.dtype)
    return AttentionInputs(
        qkv=qkv,
        qk_norm=QkNorm(norms[0].contiguous(), norms[1].contiguous()) if kind.qk_norm else None,
        layer=layer,
        step=step,
        plan=torch.empty(0, dtype=torch.int32, device=device),
    )


def copy_case(inputs: AttentionInputs[Tensor]) -> AttentionInputs[Tensor]:
    """The same step with its own copy of everything that an op updates."""
    layer = inputs.layer
    own = {name: getattr(layer, name).clone() for name in ("kv_pool", "draft_lse", "scores")}
    return replace(inputs, layer=replace(layer, **own))


def rope_table(head_dim: int, num_positions: int) -> Tensor:
    """[num_positions, head_dim] fp32, theta 10000."""
    half = head_dim // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequency
    return torch.cat((angles.cos(), angles.sin()), dim=1).float().cuda()


def _ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def _page_table(kind: CaseKind, slots: tuple[NaiveSlot, ...], rng: torch.Generator) -> Tensor:
    """Distinct pages in random order; the first one is nobody's, and unused places name it."""
    counts = [-(-slot.positions.stop // kind.params.page_size) for slot in slots]
    order = torch.randperm(sum(counts), generator=rng, device="cuda") + kind.first_page + 1
    table = torch.full((len(slots), max(counts) + 1), kind.first_page, dtype=torch.int32, device="cuda")
    start = 0
    for slot, count in enumerate(counts):
        table[slot, :count] = order[start : start + count].int()
        start += count
    return table


def _step(slots: tuple[NaiveSlot, ...], pages: Tensor, rng: torch.Generator, rope: Tensor) -> StepInputs[Tensor]:
    starts = [0]
    for slot in slots:
        starts.append(starts[-1] + slot.num_rows)
    lookups = torch.full((len(slots), MAX_LOOKUPS), -1, dtype=torch.int32, device="cuda")
    for index, slot in enumerate(slots):
        found = torch.randint(0, slot.kv_len + 1, (slot.num_lookups,), generator=rng, device="cuda")
        lookups[index, : slot.num_lookups] = found.int()
    return StepInputs(
        row_start=_ints(starts),
        phase=_ints([slot.phase for slot in slots]),
        draft_index=_ints([slot.draft_index for slot in slots]),
        score_rows=_ints([slot.score_rows for slot in slots]),
        score_index=torch.randperm(len(slots) + 2, generator=rng, device="cuda")[: len(slots)].int(),
        kv_len=_ints([slot.kv_len for slot in slots]),
        recent_start=_ints([slot.recent_start for slot in slots]),
        num_staying=_ints([slot.num_staying for slot in slots]),
        num_moving=_ints([slot.num_moving for slot in slots]),
        lookups=lookups,
        num_lookups=_ints([slot.num_lookups for slot in slots]),
        page_table=pages,
        rope_table=rope,
    )


def _pillars(kind: CaseKind, slots: tuple[NaiveSlot, ...], rng: torch.Generator) -> Tensor:
    """Random positions before recent_start, those that stay and those that move each ascending."""
    heads = kind.params.num_kv_heads
    width = max(slot.num_staying + slot.num_moving for slot in slots) + 1
    pillars = torch.full((len(slots), heads, width), -7, dtype=torch.int32, device="cuda")
    for index, slot in enumerate(slots):
        ends = (slot.num_staying, slot.num_staying + slot.num_moving)
        for start, end in ((0, ends[0]), ends):
            order = torch.rand(heads, slot.recent_start, generator=rng, device="cuda").argsort(dim=1)
            pillars[index, :, start:end] = order[:, : end - start].sort(dim=1).values.int()
    return pillars


def _read(slot: NaiveSlot, pillars: Tensor, lookups: Tensor) -> Tensor:
    """[num_kv_heads, cached] which of the cached tokens the slot's rows read."""
    heads, cached = len(pillars), len(slot.cached)
    if slot.phase != Phase.DRAFT:
        return torch.full((heads, cached), slot.phase != Phase.IDLE, device="cuda")
    staying, moving = slot.num_staying, slot.num_staying + slot.num_moving
    found = lookups[: slot.num_lookups].expand(heads, -1)
    chosen = torch.cat((pillars[:, :staying], pillars[:, staying:moving] + slot.draft_index, found), dim=1).long()
    read = torch.zeros(heads, cached + 1, dtype=torch.bool, device="cuda")
    read.scatter_(1, torch.where(chosen < slot.recent_start, chosen, cached), True)
    read[:, slot.recent_start :] = True
    return read[:, :cached]


def _pool(
    kind: CaseKind,
    slots: tuple[NaiveSlot, ...],
    step: StepInputs[Tensor],
    pillars: Tensor,
    rng: torch.Generator,
    kv_scale: Tensor | None,
) -> Tensor:
    params = kind.params
    shape = (int(step.page_table.max()) + 2, 2, params.num_kv_heads, params.page_size, params.head_dim)
    dtype = kind.dtype if kv_scale is None else torch.float8_e4m3fn
    pool = torch.full(shape, torch.nan, dtype=dtype, device="cuda")
    for index, slot in enumerate(slots):
        cached = len(slot.cached)
        kv = torch.randn(cached, 2, params.num_kv_heads, params.head_dim, generator=rng, device="cuda")
        if kind.huge_key and cached:
            kv[int(torch.randint(0, cached, (), generator=rng, device="cuda")), 0] *= 12
        unread = ~_read(slot, pillars[index], step.lookups[index])
        kv.masked_fill_(unread.t()[:, None, :, None], torch.nan)
        position = torch.arange(cached, device="cuda")
        page = step.page_table[index, position // params.page_size].long()
        stored = kv.to(dtype) if kv_scale is None else to_fp8(kv, kv_scale[..., None])
        pool[page, :, :, position % params.page_size] = stored
    return pool


def _draft_lse(kind: CaseKind, slots: tuple[NaiveSlot, ...], rng: torch.Generator) -> Tensor:
    """Near the log-sum-exp of standard normal logits over so many keys; NaN where no draft was."""
    heads = kind.params.num_heads
    lse = torch.full((len(slots), MAX_DRAFT_LEN, heads), torch.nan, device="cuda")
    for index, slot in enumerate(slots):
        if slot.phase == Phase.VERIFY:
            drafts = slot.num_rows - 1
            noise = torch.randn(drafts, heads, generator=rng, device="cuda")
            lse[index, :drafts] = torch.log(torch.tensor(slot.positions.stop + 1.0)) + 0.5 + 0.2 * noise
    return lse


def _scores(kind: CaseKind, slots: tuple[NaiveSlot, ...], longest: int) -> Tensor:
    most = max(1, *(slot.score_rows for slot in slots)) if len(slots) > 1 else max(1, slots[0].score_rows)
    planes = num_score_planes(kind.params.score_planes, most)
    shape = (len(slots) + 2, planes, kind.params.num_kv_heads, longest)
    return torch.full(shape, torch.nan, dtype=kind.score_dtype, device="cuda")


def random_slots(seed: int, count: int, longest: int, most_rows: int = 17) -> tuple[NaiveSlot, ...]:
    """Slots of all phases at lengths from 1 to `longest`, page and tile boundaries among them."""
    rng = random.Random(seed)
    return tuple(_random_slot(rng, longest, most_rows) for _ in range(count))


def _random_slot(rng: random.Random, longest: int, most_rows: int) -> NaiveSlot:
    phase = rng.choice(list(Phase))
    boundary = rng.choice((16, 64, 128, 256)) + rng.choice((-1, 0, 1))
    kv_len = min(longest, rng.choice((0, 1, boundary, rng.randint(1, longest))))
    if phase == Phase.DRAFT:
        return _random_draft(rng, max(1, kv_len))
    if phase == Phase.VERIFY:
        rows = rng.randint(1, most_rows)
        return NaiveSlot(phase, rows, kv_len, score_rows=rng.choice((0, rows, rng.randint(1, rows))))
    if phase == Phase.PREFILL:
        rows = rng.choice((1, 7, 63, 64, 65, 200))
        return NaiveSlot(phase, rows, rng.choice((0, kv_len)), score_rows=rng.choice((0, min(rows, most_rows), 1)))
    return NaiveSlot(phase, 0, kv_len)


def _random_draft(rng: random.Random, kv_len: int) -> NaiveSlot:
    recent_start = rng.choice((0, max(0, kv_len - rng.randint(0, 80)), kv_len))
    most = min(recent_start, 300)
    return NaiveSlot(
        Phase.DRAFT,
        1,
        kv_len,
        draft_index=rng.randint(0, MAX_DRAFT_LEN - 1),
        recent_start=recent_start,
        num_staying=rng.choice((0, most, rng.randint(0, most))),
        num_moving=rng.choice((0, min(most, 80), rng.randint(0, most))),
        num_lookups=rng.choice((0, 1, MAX_LOOKUPS)),
    )
