"""PillarAttention's kernels, called through the plugin host, against the torch reference on the same numbers."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from attention_cases import CaseKind, copy_case, make_case, random_slots
from attention_checks import Found, Record, check, check_found
from built_plugins import built
from naive_attention import NaiveSlot
from sparsespec.plugins.library import plugin_host_path, plugin_library_path
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import (
    AttentionInputs,
    LayerInputs,
    PillarAttentionParams,
    ScorePlanes,
    StepInputs,
)
from sparsespec.plugins.pillar_attention.reference import pillar_attention
from sparsespec.plugins.plugin_host import PluginLibrary
from sparsespec.runtime.device.plugin_ops import PluginAttention

pytestmark = pytest.mark.gpu


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> PluginAttention:
    """Outputs, plans and workspaces that nobody wrote hold NaN and -1."""
    empty = torch.empty

    def poisoned(*sizes: object, **options: object) -> Tensor:
        made = empty(*sizes, **options)  # type: ignore[call-overload]
        made.view(torch.uint8).fill_(0xFF)
        return made  # type: ignore[no-any-return]

    monkeypatch.setattr(torch, "empty", poisoned)
    return PluginAttention(PluginLibrary(built(plugin_library_path), built(plugin_host_path)))


def params_of(
    group: int, head_dim: int, page_size: int, planes: ScorePlanes = "diagonal", kv_heads: int = 2
) -> PillarAttentionParams:
    return PillarAttentionParams(
        num_heads=group * kv_heads, num_kv_heads=kv_heads, head_dim=head_dim, page_size=page_size, score_planes=planes
    )


@pytest.mark.parametrize("kv_fp8", [False, True], ids=["16 bits", "fp8 pool"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_all_phases_mixed(
    kernels: PluginAttention, record_property: Record, dtype: torch.dtype, head_dim: int, page_size: int, kv_fp8: bool
) -> None:
    for group in range(1, 17):
        params = params_of(group, head_dim, page_size)
        for seed in range(3):
            number = ((group * 3 + seed) * 64 + page_size) * 128 + head_dim
            kind = CaseKind(params, dtype, number, qk_norm=seed == 1, huge_key=seed == 2, rope_scale=1 + 0.07 * seed)
            kind = replace(kind, kv_fp8=kv_fp8)
            check(kernels, kind, random_slots(number, 24, 900), record_property)


def _any_kind(rng: random.Random) -> CaseKind:
    planes: ScorePlanes = rng.choice(("mean", "diagonal", "rows"))
    params = params_of(
        rng.randint(1, 16), rng.choice((64, 96, 128)), rng.choice((16, 32, 64)), planes, kv_heads=rng.randint(1, 4)
    )
    return CaseKind(
        replace(params, score_normalizer=rng.choice(("draft", "exact"))),
        rng.choice((torch.bfloat16, torch.float16)),
        rng.randrange(2**31),
        score_dtype=rng.choice((torch.float32, torch.float16)),
        qk_norm=rng.random() < 0.3,
        huge_key=rng.random() < 0.3,
        rope_scale=rng.choice((1.0, 1.14)),
        kv_fp8=rng.random() < 0.3,
    )


@pytest.mark.parametrize("number", range(8))
def test_fresh_seeds(kernels: PluginAttention, record_property: Record, fresh_seed: int, number: int) -> None:
    """Other batches of other kinds at every run."""
    rng = random.Random(fresh_seed * 8 + number)
    for _ in range(16):
        slots = random_slots(rng.randrange(2**31), rng.randint(1, 64), rng.choice((70, 900, 3000)))
        check(kernels, _any_kind(rng), slots, record_property)


@pytest.mark.parametrize("planes", ["mean", "diagonal", "rows", "none"])
@pytest.mark.parametrize("normalizer", ["draft", "exact"])
@pytest.mark.parametrize("score_dtype", [torch.float32, torch.float16], ids=str)
def test_scores(
    kernels: PluginAttention, record_property: Record, planes: ScorePlanes, normalizer: str, score_dtype: torch.dtype
) -> None:
    for seed, group in enumerate((1, 3, 4, 7, 16)):
        params = replace(params_of(group, 128, 16, planes), score_normalizer=normalizer)  # type: ignore[arg-type]
        for huge in (False, True):
            kind = CaseKind(params, torch.bfloat16, seed, score_dtype=score_dtype, huge_key=huge)
            slots = tuple(
                NaiveSlot(Phase.VERIFY, rows, kv_len, score_rows=rows)
                for rows, kv_len in ((9, 3000), (17, 700), (1, 130), (2, 64), (17, 0), (9, 5))
            )
            prompts = (NaiveSlot(Phase.PREFILL, 300, 0, score_rows=9), NaiveSlot(Phase.PREFILL, 17, 400, score_rows=17))
            check(kernels, kind, (*slots, *prompts), record_property)


SINGLE = {
    "one token": NaiveSlot(Phase.PREFILL, 1, 0, score_rows=1),
    "one row": NaiveSlot(Phase.VERIFY, 1, 500, score_rows=1),
    "draft without pillars": NaiveSlot(Phase.DRAFT, 1, 200, draft_index=3, recent_start=150),
    "draft of the first token": NaiveSlot(Phase.DRAFT, 1, 1, recent_start=0),
    "context below the budget": NaiveSlot(Phase.DRAFT, 1, 40, recent_start=38, num_staying=38),
    "everything moves": NaiveSlot(Phase.DRAFT, 1, 600, draft_index=8, recent_start=590, num_moving=400),
    "17 rows": NaiveSlot(Phase.VERIFY, 17, 4000, score_rows=17),
    "long chunk": NaiveSlot(Phase.PREFILL, 2048, 100, score_rows=9),
    "nothing": NaiveSlot(Phase.IDLE, 0, 77),
}


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("group", [1, 4, 5, 16])
def test_one_slot_alone(kernels: PluginAttention, record_property: Record, name: str, group: int) -> None:
    """A slot that many workers share."""
    for dtype in (torch.bfloat16, torch.float16):
        kind = CaseKind(params_of(group, 128, 16), dtype, group)
        check(kernels, kind, (SINGLE[name],), record_property)


@pytest.mark.parametrize("group", [8, 11, 16])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_large_groups_without_scores(
    kernels: PluginAttention, record_property: Record, group: int, head_dim: int
) -> None:
    """No more rows than slots: narrow row tiles, of which a verification takes several."""
    params = params_of(group, head_dim, 16, "none")
    drafts = tuple(
        NaiveSlot(Phase.DRAFT, 1, 900 + slot, 3, 880 + slot, num_staying=90, num_moving=40, num_lookups=4)
        for slot in range(24)
    )
    verification = (NaiveSlot(Phase.VERIFY, 9, 3000), *(NaiveSlot(Phase.IDLE, 0, 5),) * 15)
    for slots in (drafts, verification):
        check(kernels, CaseKind(params, torch.bfloat16, group), slots, record_property)


@pytest.mark.parametrize("fp8", [False, True])
def test_scores_by_log_sum_exps_after_units_without(
    kernels: PluginAttention, record_property: Record, fp8: bool
) -> None:
    """A team that is done first goes on: what the other still has to leave of the unit before must not reach it."""
    before = (NaiveSlot(Phase.VERIFY, 9, 0), NaiveSlot(Phase.VERIFY, 16, 1), NaiveSlot(Phase.VERIFY, 7, 40))
    scored = (NaiveSlot(Phase.VERIFY, 6, 0, score_rows=6), NaiveSlot(Phase.VERIFY, 2, 16, score_rows=1))
    for seed, (group, head_dim) in enumerate(((9, 64), (16, 96), (8, 128))):
        params = replace(params_of(group, head_dim, 16, "rows"), score_normalizer="exact")
        kind = CaseKind(params, torch.bfloat16, seed, huge_key=True, kv_fp8=fp8)
        for other in before:
            check(kernels, kind, (other, scored[0], other, scored[1]) * 64, record_property)


@pytest.mark.parametrize("phase", [Phase.DRAFT, Phase.VERIFY])
def test_long_context(kernels: PluginAttention, record_property: Record, phase: Phase) -> None:
    length = 128 * 1024
    draft = NaiveSlot(phase, 1, length, 5, length - 1700, num_staying=4800, num_moving=1600, num_lookups=16)
    slot = draft if phase == Phase.DRAFT else NaiveSlot(phase, 9, length, score_rows=9)
    other = NaiveSlot(Phase.VERIFY, 9, 1000, score_rows=9)
    check(kernels, CaseKind(params_of(4, 128, 64), torch.bfloat16, 1), (other, slot), record_property)


def test_pool_beyond_31_bits(kernels: PluginAttention, record_property: Record) -> None:
    """All pages in use lie past element 2^31 of the pool."""
    params = params_of(4, 128, 64, kv_heads=8)
    first_page = 2**31 // (2 * 8 * 64 * 128) + 5
    slots = random_slots(5, 12, 500)
    check(kernels, CaseKind(params, torch.bfloat16, 3, first_page=first_page), slots, record_property)


SMALL = (
    NaiveSlot(Phase.PREFILL, 40, 30, score_rows=9),
    NaiveSlot(Phase.DRAFT, 1, 150, 3, 120, num_staying=70, num_moving=20, num_lookups=8),
    NaiveSlot(Phase.VERIFY, 9, 700, score_rows=9),
    NaiveSlot(Phase.IDLE, 0, 50),
    NaiveSlot(Phase.PREFILL, 20, 0),
)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_small_step(kernels: PluginAttention, record_property: Record, head_dim: int) -> None:
    """What `make test-sanitizer` looks at."""
    for dtype, kv_fp8 in product((torch.bfloat16, torch.float16), (False, True)):
        kind = CaseKind(params_of(4, head_dim, 16), dtype, head_dim, qk_norm=True, kv_fp8=kv_fp8)
        check(kernels, kind, SMALL, record_property)


def test_many_slots(kernels: PluginAttention, record_property: Record) -> None:
    for count in (96, 512):
        kind = CaseKind(params_of(3, 64, 16, kv_heads=3), torch.float16, count)
        check(kernels, kind, random_slots(count, count, 400), record_property)


def test_one_graph_serves_any_mix(kernels: PluginAttention, record_property: Record) -> None:
    """A captured launch reads phases and lengths when it runs: other values, same shapes, same graph."""
    kind = CaseKind(params_of(4, 128, 16), torch.bfloat16, 1)
    first = tuple(NaiveSlot(Phase.VERIFY, 9, length, score_rows=9) for length in (500, 20, 300))
    prompt = NaiveSlot(Phase.PREFILL, 25, 470, score_rows=5)
    draft = NaiveSlot(Phase.DRAFT, 1, 210, 4, 190, num_staying=60, num_moving=20, num_lookups=9)
    second = (prompt, draft, NaiveSlot(Phase.VERIFY, 1, 300, score_rows=1))
    cases = [make_case(kind, slots) for slots in (first, second)]
    width = max(case.layer.pillars.shape[2] for case in cases)
    cases = [_widened(case, width) for case in cases]
    given = copy_whole(cases[0])
    kernels.attention(kind.params, replace(given, plan=kernels.plan(kind.params, given.step)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = kernels.plan(kind.params, given.step)
        output = kernels.attention(kind.params, replace(given, plan=plan))
    for case in (*cases, cases[0]):
        _overwrite(given, case)
        output.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        expected = copy_case(case)
        found = Found(output, given, pillar_attention(kind.params, expected), expected, case)
        check_found(kind, found, record_property)


def _widened(case: AttentionInputs[Tensor], width: int) -> AttentionInputs[Tensor]:
    """With room for any case of the graph's test."""
    pad = torch.nn.functional.pad
    pool, scores = case.layer.kv_pool, case.layer.scores
    room = torch.full((80 - len(pool), *pool.shape[1:]), torch.nan, dtype=pool.dtype, device=pool.device)
    return replace(
        case,
        layer=replace(
            case.layer,
            pillars=pad(case.layer.pillars, (0, width - case.layer.pillars.shape[2])),
            kv_pool=torch.cat((pool, room)),
            scores=pad(scores, (0, 600 - scores.shape[3]), value=torch.nan),
        ),
        step=replace(
            case.step,
            page_table=pad(case.step.page_table, (0, 40 - case.step.page_table.shape[1])),
            rope_table=pad(case.step.rope_table, (0, 0, 0, 600 - len(case.step.rope_table))),
        ),
    )


def copy_whole(case: AttentionInputs[Tensor]) -> AttentionInputs[Tensor]:
    """The same with memory of its own."""
    step = StepInputs(**{name: tensor.clone() for name, tensor in vars(case.step).items()})
    layer = LayerInputs(**{name: tensor.clone() for name, tensor in _tensors(case.layer).items()})
    return replace(case, qkv=case.qkv.clone(), layer=layer, step=step)


def _tensors(part: LayerInputs[Tensor] | StepInputs[Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in vars(part).items() if tensor is not None}


def _overwrite(target: AttentionInputs[Tensor], source: AttentionInputs[Tensor]) -> None:
    target.qkv.copy_(source.qkv)
    for part, other in ((target.layer, source.layer), (target.step, source.step)):
        for name, tensor in _tensors(other).items():
            getattr(part, name).copy_(tensor)


def test_layers_one_after_another(kernels: PluginAttention) -> None:
    """With nothing between them each starts under the end of the one before, and leaves what it leaves alone."""
    kind = CaseKind(params_of(4, 128, 16), torch.bfloat16, 12)
    case = make_case(kind, random_slots(12, 40, 2000))
    plan = kernels.plan(kind.params, case.step)
    layers = [replace(case, plan=plan), replace(case, plan=plan, qkv=-case.qkv)] * 6

    def left(given: list[AttentionInputs[Tensor]], outputs: list[Tensor]) -> list[Tensor]:
        torch.cuda.synchronize()
        of_layers = [(each.layer.scores, each.layer.draft_lse, each.layer.kv_pool) for each in given]
        return [tensor for tensors in of_layers for tensor in tensors] + outputs

    alone, among = ([copy_case(layer) for layer in layers] for _ in range(2))
    outputs = []
    for layer in alone:
        outputs.append(kernels.attention(kind.params, layer))
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [kernels.attention(kind.params, layer) for layer in among]
    graph.replay()
    for found, expected in zip(left(among, captured), left(alone, outputs), strict=True):
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def test_repeated_launches_agree(kernels: PluginAttention) -> None:
    """Nothing depends on which worker comes first."""
    kind = CaseKind(params_of(4, 128, 16), torch.bfloat16, 11)
    case = make_case(kind, random_slots(11, 40, 2000))
    results = []
    for _ in range(5):
        given = copy_case(case)
        output = kernels.attention(kind.params, replace(given, plan=kernels.plan(kind.params, given.step)))
        results.append((output, given.layer.scores, given.layer.draft_lse, given.layer.kv_pool))
    for result in results[1:]:
        for found, first in zip(result, results[0], strict=True):
            assert torch.equal(found.view(torch.uint8), first.view(torch.uint8))
