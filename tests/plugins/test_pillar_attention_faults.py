"""Faults that an implementation of PillarAttention may have, to show that the checks catch them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from naive_attention import Attention, NaiveSlot, check_attention, random_step
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention import reference
from sparsespec.plugins.pillar_attention.inputs import (
    AttentionInputs,
    LayerInputs,
    PillarAttentionParams,
    QkNorm,
    ScorePlanes,
    StepInputs,
)
from sparsespec.plugins.pillar_attention.reference import pillar_attention, to_fp8

Mutate = Callable[[pytest.MonkeyPatch], Attention]


def with_inputs(change: Callable[[AttentionInputs[Tensor]], AttentionInputs[Tensor]]) -> Mutate:
    """An implementation that misreads what it is given."""
    return lambda _: lambda params, inputs: pillar_attention(params, change(inputs))


def with_step(change: Callable[[StepInputs[Tensor]], StepInputs[Tensor]]) -> Mutate:
    """An implementation that misreads its step."""
    return with_inputs(lambda inputs: replace(inputs, step=change(inputs.step)))


def with_norm(change: Callable[[QkNorm[Tensor]], QkNorm[Tensor] | None]) -> Mutate:
    """An implementation that misreads the norms before RoPE."""

    def misread(inputs: AttentionInputs[Tensor]) -> AttentionInputs[Tensor]:
        assert inputs.qk_norm is not None
        return replace(inputs, qk_norm=change(inputs.qk_norm))

    return with_inputs(misread)


def with_params(change: Callable[[PillarAttentionParams], PillarAttentionParams]) -> Mutate:
    """An implementation that misreads its constants."""
    return lambda _: lambda params, inputs: pillar_attention(change(params), inputs)


def with_part(name: str, part: Callable[..., object]) -> Mutate:
    """The reference with one of its functions replaced."""

    def mutate(monkeypatch: pytest.MonkeyPatch) -> Attention:
        monkeypatch.setattr(reference, name, part)
        return pillar_attention

    return mutate


def query_heads_by_remainder(params: PillarAttentionParams, inputs: AttentionInputs[Tensor]) -> Tensor:
    """Query head h reads KV head h % num_kv_heads instead of h // group."""
    heads = inputs.qkv.unflatten(1, (-1, params.head_dim)).clone()
    order = torch.arange(params.num_heads).unflatten(0, (-1, params.num_kv_heads)).T.flatten()
    heads[:, : params.num_heads] = heads[:, order]
    attended = pillar_attention(params, replace(inputs, qkv=heads.flatten(1)))
    output: Tensor = attended.unflatten(1, (-1, params.head_dim))
    return output[:, order.argsort()].flatten(1)


def restore_drafted_keys(params: PillarAttentionParams, inputs: AttentionInputs[Tensor]) -> Tensor:
    """Attends to what the verification computed, but leaves the drafts' K and V in the pool."""
    pool = inputs.layer.kv_pool
    drafted = pool.clone()
    output = pillar_attention(params, inputs)
    pool.copy_(torch.where(drafted.isnan(), pool, drafted))
    return output


append, gather, everything = reference._append, reference._gather, reference._everything
rotate, rms_norm, score_planes = reference._rotate, reference.rms_norm, reference.score_planes
write_draft_lse = reference._write_draft_lse


def append_only_the_newest(
    params: PillarAttentionParams, layer: LayerInputs[Tensor], pages: Tensor, positions: Tensor, k: Tensor, v: Tensor
) -> None:
    append(params, layer, pages, positions[:, -1:], k[:, -1:], v[:, -1:])


def sees_to(group: reference.SlotGroup, shift: int) -> reference.Reads:
    """Each row sees `shift` positions more than it should."""
    read = everything(group)
    return replace(read, allowed=everything(replace(group, positions=group.positions + shift)).allowed)


def stay(step: StepInputs[Tensor]) -> StepInputs[Tensor]:
    """Moving pillars are read where the first draft row reads them."""
    return replace(step, num_staying=step.num_staying + step.num_moving, num_moving=step.num_moving * 0)


def rotate_neighbours(x: Tensor, rope: Tensor) -> Tensor:
    """Pairs (x[2i], x[2i + 1]), as llama.cpp stores them."""
    halves = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    turned: Tensor = rotate(halves, rope).unflatten(-1, (2, -1))
    return turned.transpose(-1, -2).flatten(-2)


def rotate_backwards(x: Tensor, rope: Tensor) -> Tensor:
    cos, sin = rope.chunk(2, dim=-1)
    return rotate(x, torch.cat((cos, -sin), dim=-1))


def norm_without_weight(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(x, torch.ones_like(weight), eps)


def norm_over_all_heads(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """One root mean square per row, as OLMo 2 has it."""
    return rms_norm(x.flatten(2), weight.repeat(x.shape[2]), eps).view_as(x)


def without_clamp(_: PillarAttentionParams, group: reference.SlotGroup, logits: Tensor, draft_lse: Tensor) -> Tensor:
    """As reference._scored for rows that all have a draft but the last; scores may exceed 1."""
    row = torch.arange(logits.shape[3]).clamp(max=min(logits.shape[3] - 2, draft_lse.shape[1] - 1))
    lse = draft_lse[group.slots[:, None], row].transpose(1, 2).unflatten(1, logits.shape[1:3])
    return (logits - lse[..., None]).exp()


def without_last_row(kind: ScorePlanes, rows: Tensor) -> Tensor:
    """Only rows that had a draft of their own count."""
    return score_planes(kind, rows[:, :-1])


def of_another_draft(steps: int) -> Mutate:
    """Each scored row looks `steps` drafts off."""

    def misread(inputs: AttentionInputs[Tensor]) -> AttentionInputs[Tensor]:
        lse = inputs.layer.draft_lse[:, : VERIFIED[0].num_rows - 1].roll(steps, dims=1)
        return replace(inputs, layer=replace(inputs.layer, draft_lse=lse))

    return with_inputs(misread)


def leave_in_the_first_place(
    group: reference.SlotGroup, logits: Tensor, draft_index: Tensor, draft_lse: Tensor
) -> None:
    write_draft_lse(group, logits, draft_index * 0, draft_lse)


def leave_base_2(group: reference.SlotGroup, logits: Tensor, draft_index: Tensor, draft_lse: Tensor) -> None:
    write_draft_lse(group, logits / math.log(2), draft_index, draft_lse)


PARAMS = PillarAttentionParams(
    num_heads=8, num_kv_heads=2, head_dim=16, page_size=16, rms_norm_eps=0.3, score_planes="diagonal"
)
DRAFT = (NaiveSlot(Phase.DRAFT, 1, kv_len=40, draft_index=2, recent_start=30, num_staying=5),)
UNION = (replace(DRAFT[0], num_moving=9, num_lookups=6),)
BLOCKS = (
    NaiveSlot(Phase.VERIFY, 5, kv_len=20, recent_start=10, num_staying=5, score_rows=5),
    NaiveSlot(Phase.VERIFY, 3, kv_len=20, recent_start=10, num_staying=5),
)
# So few tokens that drafts which read half of them miss some that matter more than all they read.
VERIFIED = (NaiveSlot(Phase.VERIFY, 5, kv_len=3, score_rows=5),)
FAULTS: dict[str, tuple[tuple[NaiveSlot, ...], Mutate]] = {
    "recent_start too high": (DRAFT, with_step(lambda step: replace(step, recent_start=step.recent_start + 1))),
    "recent_start too low": (DRAFT, with_step(lambda step: replace(step, recent_start=step.recent_start - 1))),
    "one pillar too few": (DRAFT, with_step(lambda step: replace(step, num_staying=step.num_staying - 1))),
    "draft number ignored": (DRAFT, with_step(lambda step: replace(step, draft_index=step.draft_index * 0))),
    "drafts read everything": (DRAFT, with_step(lambda step: replace(step, phase=step.phase * 0 + Phase.VERIFY))),
    "one scored row too few": (BLOCKS, with_step(lambda step: replace(step, score_rows=step.score_rows - 1))),
    "scores misplaced": (BLOCKS, with_step(lambda step: replace(step, score_index=step.score_index.roll(1)))),
    "row given to the next slot": (BLOCKS, with_step(lambda step: replace(step, row_start=step.row_start // 2 * 2))),
    "mask one too far": (BLOCKS, with_part("_everything", lambda group: sees_to(group, 1))),
    "mask one too short": (BLOCKS, with_part("_everything", lambda group: sees_to(group, -1))),
    "moving pillars stay": (UNION, with_step(stay)),
    "staying pillars move": (UNION, with_step(lambda step: replace(step, num_staying=step.num_staying * 0))),
    "lookups not read": (UNION, with_step(lambda step: replace(step, num_lookups=step.num_lookups * 0))),
    "duplicates count twice": (UNION, with_part("_distinct", lambda positions: (positions, positions >= 0))),
    "diagonal upside down": (BLOCKS, with_part("score_planes", lambda kind, rows: score_planes(kind, rows.flip(1)))),
    "sum of the rows": (BLOCKS, with_part("score_planes", lambda kind, rows: score_planes(kind, rows) * rows.shape[1])),
    "drafted K and V not rewritten": (BLOCKS, with_part("_append", append_only_the_newest)),
    "rewrite not kept": (BLOCKS, lambda _: restore_drafted_keys),
    "scored exactly": (VERIFIED, with_params(lambda params: replace(params, score_normalizer="exact"))),
    "last row not scored": (VERIFIED, with_part("score_planes", without_last_row)),
    "scores beyond 1": (VERIFIED, with_part("_scored", without_clamp)),
    "the next draft's normaliser": (VERIFIED, of_another_draft(-1)),
    "the previous draft's normaliser": (VERIFIED, of_another_draft(1)),
    "drafts leave base 2": (DRAFT, with_part("_write_draft_lse", leave_base_2)),
    "drafts leave it elsewhere": (DRAFT, with_part("_write_draft_lse", leave_in_the_first_place)),
    "drafts leave nothing": (DRAFT, with_part("_write_draft_lse", lambda *_: None)),
    "wrong query head": (BLOCKS, lambda _: query_heads_by_remainder),
    "rope of neighbours": (BLOCKS, with_part("_rotate", rotate_neighbours)),
    "rope turned backwards": (BLOCKS, with_part("_rotate", rotate_backwards)),
}


NORM_FAULTS: dict[str, Mutate] = {
    "no norm": with_norm(lambda _: None),
    "norms changed places": with_norm(lambda norm: QkNorm(norm.k_norm, norm.q_norm)),
    "queries normed as keys": with_norm(lambda norm: replace(norm, q_norm=norm.k_norm)),
    "keys normed as queries": with_norm(lambda norm: replace(norm, k_norm=norm.q_norm)),
    "weights ignored": with_part("rms_norm", norm_without_weight),
    "one norm over all heads": with_part("rms_norm", norm_over_all_heads),
    "another eps": with_part("rms_norm", lambda x, weight, eps: rms_norm(x, weight, eps / 3)),
}


def with_kv_scale(change: Callable[[Tensor], Tensor]) -> Mutate:
    """An implementation that misreads the scales of an FP8 cache."""

    def misread(inputs: AttentionInputs[Tensor]) -> AttentionInputs[Tensor]:
        assert inputs.layer.kv_scale is not None
        return replace(inputs, layer=replace(inputs.layer, kv_scale=change(inputs.layer.kv_scale)))

    return with_inputs(misread)


def attend_to_own_rows_unrounded(monkeypatch: pytest.MonkeyPatch) -> Attention:
    """The pool is right, but the step's own rows are read as they came."""
    appended: list[tuple[Tensor, Tensor, Tensor]] = []

    def remember(
        params: PillarAttentionParams, layer: LayerInputs[Tensor], pages: Tensor, positions: Tensor, *own: Tensor
    ) -> None:
        append(params, layer, pages, positions, *own)
        appended[:] = [(positions, *own)]

    def read(
        params: PillarAttentionParams, layer: LayerInputs[Tensor], pages: Tensor, positions: Tensor
    ) -> tuple[Tensor, ...]:
        rows, *own = appended[0]
        row = (positions - rows[:, None, :1]).expand(-1, params.num_kv_heads, -1)
        is_own = ((row >= 0) & (row < rows.shape[1]))[..., None]
        index = row.clamp(0, rows.shape[1] - 1)[..., None].expand(-1, -1, -1, params.head_dim)
        found = gather(params, layer, pages, positions)
        return tuple(
            torch.where(is_own, mine.transpose(1, 2).gather(2, index), x) for mine, x in zip(own, found, strict=True)
        )

    monkeypatch.setattr(reference, "_append", remember)
    monkeypatch.setattr(reference, "_gather", read)
    return pillar_attention


CACHE_FAULTS: dict[str, Mutate] = {
    "scales of values for keys": with_kv_scale(lambda scale: scale.flip(0)),
    "scales of another head": with_kv_scale(lambda scale: scale.roll(1, dims=1)),
    "multiplied instead of divided": with_part("to_fp8", lambda x, scale: to_fp8(x, 1 / scale)),
    "cut off, not rounded": with_part("to_fp8", lambda x, scale: to_fp8(x * (1 - 2**-4), scale)),
    "own rows not rounded": attend_to_own_rows_unrounded,
}


@pytest.mark.parametrize("name", CACHE_FAULTS)
def test_the_checks_catch_over_an_fp8_cache(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = random_step(PARAMS, BLOCKS, torch.float64, seed=7, fp8_cache=True)
    check_attention(pillar_attention, step, torch.float64, "cpu", seed=8)
    mutant = CACHE_FAULTS[name](monkeypatch)
    with pytest.raises(AssertionError):
        check_attention(mutant, step, torch.float64, "cpu", seed=8)


@pytest.mark.parametrize("name", [*FAULTS, *NORM_FAULTS])
def test_the_checks_catch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault alone, in the smallest step that shows it, in the least precise type."""
    qk_norm = name in NORM_FAULTS
    parts, mutate = (BLOCKS, NORM_FAULTS[name]) if qk_norm else FAULTS[name]
    step = random_step(PARAMS, parts, torch.bfloat16, seed=7, qk_norm=qk_norm)
    check_attention(pillar_attention, step, torch.bfloat16, "cpu", seed=8)
    mutant = mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check_attention(mutant, step, torch.bfloat16, "cpu", seed=8)
