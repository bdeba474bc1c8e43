"""PillarAttention's kernels and the torch reference on the same numbers, and how far apart they may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import Tensor

from attention_cases import CaseKind, copy_case, make_case
from naive_attention import NaiveSlot
from sparsespec.plugins.pillar_attention import reference
from sparsespec.plugins.pillar_attention.inputs import AttentionInputs
from sparsespec.plugins.pillar_attention.reference import pillar_attention, rms_norm
from sparsespec.runtime.device.plugin_ops import PluginAttention

# (absolute, relative) error of outputs. The kernels multiply probabilities in 16 bits, where the reference keeps fp32:
# half a bit of values of order one. Both round the output: one bit of what comes out.
OUTPUT_TOLERANCE = {torch.float16: (2.5e-3, 2**-10), torch.bfloat16: (2e-2, 2**-7)}
# Of whole tensors, |found - expected| / |expected|.
RELATIVE_TOLERANCE = {torch.float16: 6e-4, torch.bfloat16: 5e-3}
# Queries and keys are rotated to the same bits; QK-norm sums squares in another order, which may round one differently.
LSE_TOLERANCE = {False: 2e-5, True: 1e-2}
# Over an FP8 pool keys are exact, scales apart, and queries are rounded again. Those of float16 to 9 bits, as two FP8
# numbers: each of a logit's products moves by up to 2^-9, and, as errors have either sign, their sum over
# root(head_dim) by no more. Four times that. Those of bfloat16 are exact but for tiny or huge ones. What is left are
# Hopper's sums of FP8 products: each of up to 4 steps drops up to 2^-13 of the sum so far, together no more than 2^-11
# of a logit, and logits are 4 or so at most. One long key makes 12 times as large ones.
QUERY_TOLERANCE = {torch.float16: 4 * 2**-9, torch.bfloat16: 4 * 2**-11}
HUGE_KEY = 12
# Scores add 11-bit probabilities; those stored in fp16 are rounded, at worst to its smallest number.
SCORE_TOLERANCE = {torch.float32: (2e-3, 1e-8), torch.float16: (3e-3, 1e-7)}
# Besides, of scores under QK-norm, which may round a number of a query or a key to its neighbour, as above: by 2^-8 of
# it in bf16 or more. A logit moves by 2^-9 where that number times the other's, over root(head_dim), is 1/2: where both
# are 2 or so. Where they are larger it moves by more, see norm_tolerance: few scores may be as far off, 4 or one in
# 10,000 (of 5 million that a random step had, 13 were), and all of a case together, |found - expected| / |expected|,
# may not.
NORM_TOLERANCE = 2**-9
FEW_SCORES, ONE_SCORE_IN = 4, 10_000

Record = Callable[[str, object], None]


@dataclass(frozen=True)
class Found:
    """What the kernels returned and left behind, and what the reference did."""

    output: Tensor
    inputs: AttentionInputs[Tensor]
    expected_output: Tensor
    expected: AttentionInputs[Tensor]
    before: AttentionInputs[Tensor]


def run_both(kernels: PluginAttention, kind: CaseKind, slots: tuple[NaiveSlot, ...]) -> Found:
    before = make_case(kind, slots)
    given = copy_case(before)
    plan = kernels.plan(kind.params, given.step)
    given = replace(given, plan=plan)
    starts = plan.clone()
    output = kernels.attention(kind.params, given)
    torch.cuda.synchronize()
    assert torch.equal(plan, starts)
    return Found(output, given, *_expected(kind, before, given), before)


def _expected(
    kind: CaseKind, before: AttentionInputs[Tensor], after: AttentionInputs[Tensor]
) -> tuple[Tensor, AttentionInputs[Tensor]]:
    """What the reference makes of the step.

    A key that QK-norm rounds differently may be the next number of FP8, an eighth away: then the reference attends to
    the keys that the kernels have left. That these are no further away, check_pool looks at.
    """
    expected = copy_case(before)
    output = pillar_attention(kind.params, expected)
    if not (kind.kv_fp8 and kind.qk_norm):
        return output, expected
    again = copy_case(before)
    again.layer.kv_pool.copy_(after.layer.kv_pool)
    with patch.object(reference, "_append"):
        output = pillar_attention(kind.params, again)
    return output, replace(again, layer=replace(again.layer, kv_pool=expected.layer.kv_pool))


def check(kernels: PluginAttention, kind: CaseKind, slots: tuple[NaiveSlot, ...], record: Record) -> None:
    check_found(kind, run_both(kernels, kind, slots), record)


def check_found(kind: CaseKind, found: Found, record: Record) -> None:
    name = name_of(kind.dtype)
    difference = (found.output.double() - found.expected_output.double()).abs()
    norm = found.expected_output.double().norm().clamp(min=1e-9)
    assert not found.output.isnan().any()
    record(f"output, largest error, {name}", float(difference.max()) if len(difference) else 0.0)
    record(f"output, relative error, {name}", float(difference.norm() / norm))
    of_queries = QUERY_TOLERANCE[kind.dtype] * (HUGE_KEY if kind.huge_key else 1) if kind.kv_fp8 else 0.0
    assert_near(found.output, found.expected_output, of_queries)
    assert difference.norm() <= (RELATIVE_TOLERANCE[kind.dtype] + of_queries / 4) * norm
    check_pool(kind, found, record)
    lse = (found.inputs.layer.draft_lse, found.expected.layer.draft_lse)
    atol = LSE_TOLERANCE[kind.qk_norm] + of_queries
    torch.testing.assert_close(*lse, rtol=2e-6, atol=atol, equal_nan=True)
    check_scores(kind, found, of_queries, record)


def check_scores(kind: CaseKind, found: Found, of_queries: float, record: Record) -> None:
    scores, expected = found.inputs.layer.scores, found.expected.layer.scores
    rtol, atol = SCORE_TOLERANCE[kind.score_dtype]
    rtol += of_queries
    each = rtol + norm_tolerance(kind, found.expected)
    torch.testing.assert_close(scores, expected, rtol=each, atol=atol, equal_nan=True)
    written = ~expected.isnan()
    if not written.any():
        return
    rtol += NORM_TOLERANCE if kind.qk_norm else 0.0
    right = expected.double()[written]
    difference = (scores.double()[written] - right).abs()
    record(f"scores, relative error, {name_of(kind.score_dtype)}", float(difference.norm() / right.norm()))
    assert difference.norm() <= rtol * right.norm() + atol * len(right) ** 0.5
    if kind.qk_norm:
        further = int((difference > rtol * right.abs() + atol).sum())
        record("scores under QK-norm that are further off than others", further)
        assert further <= FEW_SCORES + len(right) // ONE_SCORE_IN


def norm_tolerance(kind: CaseKind, inputs: AttentionInputs[Tensor]) -> float:
    """About how far a logit may move where QK-norm rounds a number of the query, or of the key, to its neighbour.

    Such a number moves by a bit, 2^-7 of itself at most in bf16, 2^-10 in fp16. It is then rotated: so its product is
    with both numbers of the other vector's pair, over root(head_dim). Of the largest that the case has: queries with
    all keys, and the step's own keys with its queries.
    """
    if inputs.qk_norm is None or len(inputs.qkv) == 0:
        return 0.0
    params, layer = kind.params, inputs.layer
    heads = inputs.qkv.unflatten(1, (params.num_heads + 2 * params.num_kv_heads, params.head_dim))
    queries = rms_norm(heads[:, : params.num_heads], inputs.qk_norm.q_norm, params.rms_norm_eps)
    own = rms_norm(heads[:, params.num_heads : -params.num_kv_heads], inputs.qk_norm.k_norm, params.rms_norm_eps)
    keys = layer.kv_pool[:, 0].float().nan_to_num()
    if layer.kv_scale is not None:
        keys *= layer.kv_scale[0, :, None, None]
    of_queries = queries.abs().max() * _longest_pair(keys)
    of_keys = own.abs().max() * _longest_pair(queries.float()) * kind.rope_scale
    moves = float(of_queries + of_keys) * kind.rope_scale
    return torch.finfo(kind.dtype).eps * moves / params.head_dim**0.5


def _longest_pair(vectors: Tensor) -> Tensor:
    """Of two numbers that are rotated together."""
    return torch.hypot(*vectors.chunk(2, dim=-1)).max()


def check_pool(kind: CaseKind, found: Found, record: Record) -> None:
    """Bit by bit, but for the keys of the step's rows under QK-norm."""
    pool, expected, before = (case.layer.kv_pool for case in (found.inputs, found.expected, found.before))
    bits = [tensor.view(torch.uint8) for tensor in (pool, expected, before)]
    touched = (bits[1] != bits[2]).any(dim=-1)
    assert torch.equal(bits[0][:, 1], bits[1][:, 1])
    assert torch.equal(bits[0][~touched], bits[1][~touched])
    if not kind.qk_norm:
        assert torch.equal(bits[0], bits[1])
    elif touched.any() and kind.kv_fp8:
        check_fp8_keys(kind.dtype, pool[touched], expected[touched], record)
    elif touched.any():
        error = float((pool[touched].double() - expected[touched].double()).abs().max())
        record(f"appended keys under QK-norm, largest error, {name_of(kind.dtype)}", error)
        assert_near(pool[touched], expected[touched])


def check_fp8_keys(dtype: torch.dtype, found: Tensor, expected: Tensor, record: Record) -> None:
    """A few may differ: by a step of FP8, an eighth, beside what they differ by in 16 bits, over scales from 0.5 on."""
    atol, rtol = OUTPUT_TOLERANCE[dtype]
    share = float((found.double() != expected.double()).double().mean())
    record("appended keys under QK-norm, share of other FP8 numbers", share)
    assert share < 1e-3
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol + 2**-3, atol=2 * atol + 2**-9)


def assert_near(found: Tensor, expected: Tensor, more: float = 0.0) -> None:
    atol, rtol = OUTPUT_TOLERANCE[expected.dtype]
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=atol + more)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
