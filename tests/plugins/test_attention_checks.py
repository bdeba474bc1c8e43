"""What the comparison of kernels and reference lets pass of scores, on the CPU with made-up numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attention_cases import CaseKind
from attention_checks import NORM_TOLERANCE, SCORE_TOLERANCE, Found, check_scores, norm_tolerance
from sparsespec.plugins.pillar_attention.inputs import (
    AttentionInputs,
    LayerInputs,
    PillarAttentionParams,
    QkNorm,
    StepInputs,
)

KIND = CaseKind(PillarAttentionParams(9, 3, 64, 16, score_planes="diagonal"), torch.bfloat16, seed=0, qk_norm=True)
USUAL = SCORE_TOLERANCE[torch.float32][0] + NORM_TOLERANCE


@pytest.fixture
def inputs() -> AttentionInputs[Tensor]:
    """40 rows and 50 pages, one of them of NaN, which nobody reads; 1,200 scores, half of which nobody wrote."""
    rng = torch.Generator().manual_seed(0)
    none = torch.empty(0)
    pool = torch.randn(50, 2, 3, 16, 64, generator=rng).bfloat16()
    pool[0] = torch.nan
    scores = 0.001 + torch.rand(2, 2, 3, 200, generator=rng)
    scores[..., 100:] = torch.nan
    norms = 0.7 + 0.2 * torch.randn(2, 64, generator=rng).bfloat16()
    qkv = torch.randn(40, 15 * 64, generator=rng).bfloat16()
    step = StepInputs(*[none] * 13)
    return AttentionInputs(qkv, QkNorm(norms[0], norms[1]), LayerInputs(pool, none, none, scores), step, none)


def record(_: str, __: object) -> None:
    pass


def check(kind: CaseKind, inputs: AttentionInputs[Tensor], wrong: int, share: float) -> None:
    """`wrong` of the first row's scores are off by that share of themselves."""
    scores = inputs.layer.scores
    assert scores is not None
    found = scores.clone()
    found[0, 0, 0, :wrong] *= 1 + share
    given = replace(inputs, layer=replace(inputs.layer, scores=found))
    check_scores(kind, Found(found, given, found, inputs, inputs), 0.0, record)


def test_a_few_scores_may_be_off_by_what_rounding_explains(inputs: AttentionInputs[Tensor]) -> None:
    assert USUAL < norm_tolerance(KIND, inputs) < 0.05
    check(KIND, inputs, 100, USUAL * 0.9)
    check(KIND, inputs, 4, USUAL * 2)
    with pytest.raises(AssertionError):
        check(KIND, inputs, 5, USUAL * 2)
    with pytest.raises(AssertionError):
        check(KIND, inputs, 1, 0.06)


def test_without_norm_none_may(inputs: AttentionInputs[Tensor]) -> None:
    plain = replace(inputs, qk_norm=None)
    assert norm_tolerance(KIND, plain) == norm_tolerance(KIND, replace(inputs, qkv=inputs.qkv[:0])) == 0
    with pytest.raises(AssertionError):
        check(replace(KIND, qk_norm=False), plain, 1, 0.003)


def test_fp16_rounds_to_three_bits_more(inputs: AttentionInputs[Tensor]) -> None:
    halves = replace(inputs, qkv=inputs.qkv.half(), qk_norm=QkNorm(*(norm.half() for norm in norms(inputs))))
    ratio = norm_tolerance(KIND, inputs) / norm_tolerance(replace(KIND, dtype=torch.float16), halves)
    assert ratio == pytest.approx(8, rel=0.01)


def norms(inputs: AttentionInputs[Tensor]) -> tuple[Tensor, Tensor]:
    assert inputs.qk_norm is not None
    return inputs.qk_norm.q_norm, inputs.qk_norm.k_norm
