"""Mistakes that a lowering could make, one at a time: the interpreter refuses the network, or its outputs are wrong."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest
import torch

from engine_steps import MODEL, engine_spec, random_step, torch_outputs
from executor_driver import relative_error
from network_checks import errors, interpreted, recorded, tolerance
from network_mutations import (
    Change,
    Mutation,
    becomes,
    dropped,
    exchanges,
    has_field,
    kind,
    mutated,
    named,
    plugin,
    same,
    starts,
    takes,
)
from recorded_ops import (
    Activation,
    Cast,
    Constant,
    Elementwise,
    Gather,
    MatrixMultiply,
    Reduce,
    Shuffle,
    Slice,
    Unary,
)
from recorded_types import (
    DataType,
    ElementWiseOperation,
    MatrixOperation,
    ReduceOperation,
    Refused,
)
from sparsespec.builder.build_config import DType

SUM, PROD, DIV = (
    Elementwise(op) for op in (ElementWiseOperation.SUM, ElementWiseOperation.PROD, ElementWiseOperation.DIV)
)
FLOOR_DIV = Elementwise(ElementWiseOperation.FLOOR_DIV)
AVG = ReduceOperation.AVG
NONE, TRANSPOSE = MatrixOperation.NONE, MatrixOperation.TRANSPOSE
INTERMEDIATE, HIDDEN = MODEL.intermediate_size, MODEL.hidden_size
# o_proj is square: [6 * 8, 48].
SQUARE = replace(MODEL, hidden_size=48)
HALVED = Constant(DataType.INT64, (2,), (1, 2))

GATE = Slice((0, 0), (1, INTERMEDIATE), (1, 1))
UP = Slice((0, INTERMEDIATE), (1, INTERMEDIATE), (1, 1))
GATE_IS_UP = Mutation("gate: the second half", same(GATE), becomes(UP))
UP_IS_GATE = Mutation("up: the first half", same(UP), becomes(GATE))
O_PROJ = named("layers.0.o_proj")
GATHERED = starts("logit_rows of ")  # what comes before the last MLP, and what that adds
SILU_CAST = 4  # of a layer's casts: after two in each of two norms

# Places of PillarAttention's inputs in docs/plugins.md.
KV_POOL, DRAFT_LSE, PILLARS, PHASE, KV_LEN, RECENT_START, NUM_STAYING, NUM_MOVING = 1, 2, 3, 5, 8, 9, 10, 11
SCORE_INDEX, Q_NORM, K_NORM = 17, 19, 20

WRONG = [
    Mutation("o_proj is not transposed", O_PROJ, becomes(MatrixMultiply(NONE, NONE)), model=SQUARE),
    Mutation("o_proj of another layer", O_PROJ, takes(1, "layers.1.o_proj")),
    Mutation("output projection: the embedding", named("lm_head"), takes(1, "embedding")),
    GATE_IS_UP,
    UP_IS_GATE,
    Mutation("gate: every second column", same(GATE), becomes(replace(GATE, stride=(1, 2)))),
    Mutation("no sigmoid", kind(Activation), dropped()),
    Mutation("gate without SiLU", same(PROD), dropped(), nth=4),
    Mutation("gate without up", same(PROD), dropped(), nth=5),
    Mutation("no bias", same(SUM), dropped(), nth=1, family="qwen2"),
    Mutation("bias of another layer", kind(Shuffle), takes(0, "layers.1.qkv_bias"), nth=1, family="qwen2"),
    Mutation("attention is not added", same(SUM), dropped(), nth=1),
    Mutation("the MLP is not added", same(SUM), dropped(), nth=3),
    Mutation("mean over rows", kind(Reduce), becomes(Reduce(AVG, 0b01, True))),
    Mutation("mean over rows and columns", kind(Reduce), becomes(Reduce(AVG, 0b11, True))),
    Mutation("no eps", same(SUM), dropped()),
    Mutation("another eps", kind(Constant), becomes(Constant(DataType.FLOAT, (1, 1), (1e-5,)))),
    Mutation("no square root", kind(Unary), dropped()),
    Mutation("times the root", same(DIV), becomes(PROD)),
    Mutation("no norm weight", named("final_norm"), dropped()),
    Mutation("weight of another norm", kind(Shuffle), takes(0, "layers.1.input_norm")),
    Mutation("attention: kv_pool of another layer", plugin("PillarAttention"), takes(KV_POOL, "layers.1.kv_pool")),
    Mutation("attention: pillars of another layer", plugin("PillarAttention"), takes(PILLARS, "layers.1.pillars")),
    Mutation("attention: rms_norm_eps", plugin("PillarAttention"), has_field("rms_norm_eps", 1e-6), family="qwen3"),
    Mutation("attention: norms exchanged", plugin("PillarAttention"), exchanges(Q_NORM, K_NORM), family="qwen3"),
    Mutation(
        "attention: draft_lse of another layer",
        plugin("PillarAttention"),
        takes(DRAFT_LSE, "layers.1.draft_lse"),
        shows_in="layers.0.scores.updated",
    ),
    Mutation(
        "attention: score_normalizer",
        plugin("PillarAttention"),
        has_field("score_normalizer", "exact"),
        shows_in="layers.0.scores.updated",
    ),
    Mutation(
        "attention: scores by draft_index",
        plugin("PillarAttention"),
        takes(SCORE_INDEX, "draft_index"),
        shows_in="layers.0.scores.updated",
    ),
]

REFUSED = [
    Mutation("o_proj is not transposed", O_PROJ, becomes(MatrixMultiply(NONE, NONE))),
    Mutation("rows are transposed", O_PROJ, becomes(MatrixMultiply(TRANSPOSE, TRANSPOSE))),
    Mutation("halves as wide as the whole", same(HALVED), becomes(replace(HALVED, values=(1, 1)))),
    Mutation("half of the rows", same(HALVED), becomes(replace(HALVED, values=(2, 2)))),
    Mutation("quarters", same(HALVED), becomes(replace(HALVED, values=(1, 4)))),
    Mutation("bias as a column", kind(Shuffle), becomes(Shuffle((80, 1))), nth=1, family="qwen2"),
    Mutation("bias as it is", kind(Shuffle), becomes(Shuffle()), nth=1, family="qwen2"),
    Mutation("bias in two rows", kind(Shuffle), becomes(Shuffle((2, 40))), nth=1, family="qwen2"),
    Mutation("norm weight as a column", kind(Shuffle), becomes(Shuffle((HIDDEN, 1)))),
    Mutation("mean without its axis", kind(Reduce), becomes(Reduce(AVG, 0b10, False))),
    Mutation("mean over a third axis", kind(Reduce), becomes(Reduce(AVG, 0b100, True))),
    Mutation("embedding of logit_rows", named("embedding rows"), takes(1, "logit_rows")),
    Mutation("embedding of a float tensor", named("embedding rows"), takes(1, "rope_table")),
    Mutation("columns of logit_rows", GATHERED, becomes(Gather(1))),
    Mutation("all rows, and the last MLP of some", GATHERED, dropped()),
    Mutation("some rows, and the last MLP of all", GATHERED, dropped(), nth=1),
    Mutation("the last MLP of rows by score_index", GATHERED, takes(1, "score_index"), nth=1),
    Mutation("norm in 16 bits", kind(Cast), dropped(), dtype="bfloat16"),
    Mutation("norm in a narrower type", kind(Cast), becomes(Cast(DataType.HALF)), dtype="bfloat16"),
    Mutation("norm stays in float32", kind(Cast), dropped(), nth=1, dtype="float16"),
    Mutation("norm comes out as BF16", kind(Cast), becomes(Cast(DataType.BF16)), nth=1, dtype="float16"),
    Mutation("SiLU comes out as BF16", kind(Cast), becomes(Cast(DataType.BF16)), nth=SILU_CAST + 1, dtype="float16"),
    Mutation("SiLU stays in float32", kind(Cast), dropped(), nth=SILU_CAST + 1, dtype="float16"),
    Mutation("plan: lengths exchanged", plugin("PillarPlan"), exchanges(3, 4)),
    Mutation("attention: lengths exchanged", plugin("PillarAttention"), exchanges(NUM_STAYING, NUM_MOVING)),
    Mutation("attention: recent_start is kv_len", plugin("PillarAttention"), takes(RECENT_START, "kv_len")),
    Mutation("attention: phase before row_start", plugin("PillarAttention"), exchanges(PHASE, PHASE - 1)),
    Mutation("attention: page_size", plugin("PillarAttention"), has_field("page_size", 8)),
    Mutation("attention: num_kv_heads", plugin("PillarAttention"), has_field("num_kv_heads", 3)),
    Mutation("attention: score_planes", plugin("PillarAttention"), has_field("score_planes", "mean")),
    Mutation("attention: no scores", plugin("PillarAttention"), has_field("score_planes", "none")),
    Mutation("attention: no QK-norm", plugin("PillarAttention"), has_field("qk_norm", 0), family="qwen3"),
    Mutation("attention: QK-norm", plugin("PillarAttention"), has_field("qk_norm", 1)),
]


def run_changed(mutation: Mutation) -> tuple[dict[str, float], float]:
    """Errors of all outputs after the change, and how large they may be. As it was, the network is right."""
    spec = engine_spec("verify", mutation.dtype, mutation.family, model=mutation.model)
    step, recording = random_step(spec, seed=0), recorded(spec)
    expected, limit = torch_outputs(step), tolerance(spec)
    assert max(errors(interpreted(recording, step), expected).values()) <= limit
    changed = mutated(recording, mutation)
    pairs = zip(recording.calls, changed.calls, strict=True)
    assert [before != after for before, after in pairs].count(True) == 1
    return errors(interpreted(changed, step), expected), limit


@pytest.mark.parametrize("mutation", WRONG, ids=lambda mutation: mutation.label)
def test_outputs_are_wrong(mutation: Mutation) -> None:
    found, limit = run_changed(mutation)
    print(f"relative error {found[mutation.shows_in]:.1e}, of which {limit:.1e} would pass")
    assert found[mutation.shows_in] > limit


@pytest.mark.parametrize("mutation", REFUSED, ids=lambda mutation: mutation.label)
def test_network_is_refused(mutation: Mutation) -> None:
    with pytest.raises(Refused) as refusal:
        run_changed(mutation)
    print(refusal.value)


def test_exchanged_halves() -> None:
    """Both slices change: the first MLP takes SiLU of the other half."""
    spec = engine_spec("verify", "float32")
    step, recording = random_step(spec, seed=0), recorded(spec)
    exchanged = mutated(mutated(recording, UP_IS_GATE), GATE_IS_UP)
    assert [call.op for call in exchanged.calls if call.op in (GATE, UP)] == [UP, GATE, GATE, UP]
    assert errors(interpreted(exchanged, step), torch_outputs(step))["logits"] > tolerance(spec)


@pytest.mark.parametrize("change", [dropped(), takes(1, "score_index")], ids=["all rows", "rows by score_index"])
def test_logits_of_other_rows(change: Change) -> None:
    """Both gathers change: what comes before the last MLP, and what that adds."""
    spec = engine_spec("verify", "float32")
    step, recording = random_step(spec, seed=0), recorded(spec)
    others = mutated(mutated(recording, Mutation("", GATHERED, change)), Mutation("", GATHERED, change, nth=1))
    assert errors(interpreted(others, step), torch_outputs(step))["logits"] > tolerance(spec)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_silu_in_bfloat16(dtype: DType) -> None:
    """Too near for the tolerance of one step: in the mean over a few, the network as it is comes far nearer."""
    spec = engine_spec("verify", dtype)
    recording = recorded(spec)
    narrow = mutated(recording, Mutation("", kind(Cast), becomes(Cast(DataType.BF16)), nth=SILU_CAST))
    right, wrong = [], []
    for seed in range(4):
        step = random_step(spec, seed)
        expected = torch_outputs(step)["logits"].double()
        for network, found in ((recording, right), (narrow, wrong)):
            logits = torch.from_numpy(interpreted(network, step)["logits"].array).double()
            found.append(relative_error(logits, expected))
    unit = torch.finfo(getattr(torch, dtype)).eps
    assert mean(right) < 0.35 * unit
    assert mean(wrong) > 0.6 * unit
