"""What docs/plugins.md promises about every plugin, as data, and the compiled plugins if they are here."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import pytest

from built_plugins import built
from sparsespec.plugins.library import plugin_host_path, plugin_library_path
from sparsespec.plugins.plugin_handle import DataType, EnginePhase, PluginField, PluginHandle, PluginTensors, TensorDesc
from sparsespec.plugins.plugin_host import PluginLibrary, plugin_field

INT32 = frozenset({DataType.INT32})
FLOAT32 = frozenset({DataType.FLOAT32})
MODEL = frozenset({DataType.FLOAT16, DataType.BFLOAT16})
SCORE = frozenset({DataType.FLOAT32, DataType.FLOAT16})
FP8 = frozenset({DataType.FP8})
INT64 = frozenset({DataType.INT64})
LOGIT = frozenset({DataType.FLOAT32, DataType.FLOAT16, DataType.BFLOAT16})

SIZES = {
    "B": 3,
    "B + 1": 4,
    "plan": 2 * (2 * 513 * 32 + 512) + 3,
    "rows": 5,
    "parts": 2,
    "pages": 7,
    "drafts": 4,
    "budget": 11,
    "lookups": 6,
    "max_pages": 9,
    "positions": 144,
    "scored": 2,
    "num_scored": 1,
    "logits": 6,
    "vocabulary": 24,
    "grants": 8,
    "drafts + 7": 11,
    "lengths": 50,
    "layers": 10,
}


@dataclass(frozen=True)
class TensorCase:
    """A tensor that a plugin takes or gives. shape: numbers, or keys of SIZES."""

    name: str
    types: frozenset[DataType]
    shape: tuple[int | str, ...]

    def desc(self, dtype: DataType) -> TensorDesc:
        """With SIZES, and `dtype` if this tensor may have it."""
        sizes = tuple(SIZES[each] if isinstance(each, str) else each for each in self.shape)
        return TensorDesc(sizes, dtype if dtype in self.types else min(self.types))


@dataclass(frozen=True)
class PluginCase:
    """One configured plugin."""

    label: str
    name: str
    fields: tuple[PluginField, ...]
    inputs: tuple[TensorCase, ...]
    outputs: tuple[TensorCase, ...]
    aliases: tuple[int | None, ...]
    has_workspace: bool = False

    def tensors(self, dtype: DataType = DataType.FLOAT16) -> PluginTensors:
        """Tensors that fit; those of the model and of scores have `dtype` if they may."""
        inputs = tuple(each.desc(dtype) for each in self.inputs)
        return PluginTensors(inputs, tuple(each.desc(dtype) for each in self.outputs))

    def create(self) -> PluginHandle:
        """As for a build."""
        return plugin_library().create_handle(self.name, self.fields, EnginePhase.BUILD)

    def with_fields(self, fields: tuple[PluginField, ...]) -> PluginCase:
        """The same but for its fields."""
        return replace(self, fields=fields)


@functools.cache
def plugin_library() -> PluginLibrary:
    """This project's plugins; skips the test if they were not built, and need not be."""
    return PluginLibrary(built(plugin_library_path), built(plugin_host_path))


def _int32(name: str, *shape: int | str) -> TensorCase:
    return TensorCase(name, INT32, shape)


def _fields(**values: int | float | str) -> tuple[PluginField, ...]:
    return tuple(plugin_field(name, value) for name, value in values.items())


_STEP = ("phase", "draft_index", "score_rows", "kv_len", "recent_start", "num_staying", "num_moving")
_STEP_TENSORS = (_int32("row_start", "B + 1"), *(_int32(name, "B") for name in _STEP))

PILLAR_PLAN = PluginCase(
    label="plan",
    name="PillarPlan",
    fields=_fields(num_heads=8, num_kv_heads=2, head_dim=64),
    inputs=(*_STEP_TENSORS, _int32("num_lookups", "B")),
    outputs=(_int32("plan", "plan"),),
    aliases=(None,),
)

_KV_POOL = TensorCase("kv_pool", MODEL, ("pages", 2, 2, 16, 96))
_DRAFT_LSE = TensorCase("draft_lse", FLOAT32, ("B", "drafts", 6))

PILLAR_ATTENTION = PluginCase(
    label="attention",
    name="PillarAttention",
    fields=_fields(num_heads=6, num_kv_heads=2, head_dim=96, page_size=16),
    inputs=(
        TensorCase("qkv", MODEL, ("rows", 960)),
        _KV_POOL,
        _DRAFT_LSE,
        _int32("pillars", "B", 2, "budget"),
        *_STEP_TENSORS,
        _int32("lookups", "B", "lookups"),
        _int32("num_lookups", "B"),
        _int32("page_table", "B", "max_pages"),
        TensorCase("rope_table", FLOAT32, ("positions", 96)),
        _int32("plan", "plan"),
    ),
    outputs=(TensorCase("output", MODEL, ("rows", 576)), _KV_POOL, _DRAFT_LSE),
    aliases=(None, 1, 2),
    has_workspace=True,
)


def _scored(planes: str, num_planes: int) -> PluginCase:
    scores = TensorCase("scores", SCORE, ("scored", num_planes, 2, "positions"))
    return PluginCase(
        label=f"attention-{planes}",
        name=PILLAR_ATTENTION.name,
        fields=(*PILLAR_ATTENTION.fields, plugin_field("score_planes", planes)),
        inputs=(*PILLAR_ATTENTION.inputs, _int32("score_index", "B"), scores),
        outputs=(*PILLAR_ATTENTION.outputs, scores),
        aliases=(None, 1, 2, 18),
        has_workspace=True,
    )


def _with_norm(case: PluginCase) -> PluginCase:
    norms = tuple(TensorCase(name, MODEL, (96,)) for name in ("q_norm", "k_norm"))
    fields = (*case.fields, plugin_field("qk_norm", 1), plugin_field("rms_norm_eps", 1e-5))
    return replace(case, label=f"{case.label}-norm", fields=fields, inputs=(*case.inputs, *norms))


def _with_fp8_cache(case: PluginCase) -> PluginCase:
    """To be made before norms are added, which come last."""
    pool = replace(_KV_POOL, types=FP8)
    fields = (*case.fields, plugin_field("kv_cache_dtype", "fp8"))
    inputs = (*case.inputs[:1], pool, *case.inputs[2:], TensorCase("kv_scale", FLOAT32, (2, 2)))
    outputs = (*case.outputs[:1], pool, *case.outputs[2:])
    return replace(case, label=f"{case.label}-fp8", fields=fields, inputs=inputs, outputs=outputs)


_PILLARS = _int32("pillars", "layers", "B", 2, "budget")


def _select(num_planes: int) -> PluginCase:
    scores = TensorCase("scores", SCORE, ("layers", "scored", num_planes, 2, "positions"))
    by_scored = (_int32("scored_slot", "num_scored"), _int32("moving_shift", "num_scored"))
    by_slot = tuple(_int32(name, "B") for name in ("recent_start", "num_staying", "num_moving"))
    return PluginCase(
        label=f"select-{num_planes}",
        name="PillarSelect",
        fields=(),
        inputs=(scores, *by_scored, *by_slot, _PILLARS),
        outputs=(_PILLARS,),
        aliases=(6,),
    )


_ROWS_HIDDEN = TensorCase("hidden", MODEL, ("rows", 48))

ADD_RMS_NORM = PluginCase(
    label="add-norm",
    name="AddRmsNorm",
    fields=_fields(hidden_size=48, rms_norm_eps=1e-5),
    inputs=(_ROWS_HIDDEN, TensorCase("delta", MODEL, ("parts", "rows", 48)), TensorCase("weight", MODEL, (48,))),
    outputs=(replace(_ROWS_HIDDEN, name="normed"), _ROWS_HIDDEN),
    aliases=(None, 0),
)

SILU_MUL = PluginCase(
    label="silu-mul",
    name="SiluMul",
    fields=_fields(intermediate_size=56),
    inputs=(TensorCase("gate_up", MODEL, ("rows", 112)),),
    outputs=(TensorCase("output", MODEL, ("rows", 56)),),
    aliases=(None,),
)


def _int64(name: str, *shape: int | str) -> TensorCase:
    return TensorCase(name, INT64, shape)


def _by_slot(*names: str) -> tuple[TensorCase, ...]:
    return tuple(_int32(name, "B") for name in names)


_LOGITS = TensorCase("logits", LOGIT, ("logits", "vocabulary"))
_DRAFT_PROBS = TensorCase("draft_probs", FLOAT32, ("B", "drafts", "vocabulary"))
_TOKEN_IDS = _int64("token_ids", "B", "positions")
_STATISTICS = (
    TensorCase("row_max", FLOAT32, ("logits",)),
    TensorCase("row_sum", FLOAT32, ("logits",)),
    _int32("row_token", "logits"),
    TensorCase("row_cut_logit", FLOAT32, ("logits",)),
    _int32("row_cut_token", "logits"),
)

_STEP_ROWS_WRITES = (
    _int32("page_table", "B", "max_pages"),
    _int32("lookups", "B", "lookups"),
    _int32("num_lookups", "B"),
    _int64("row_token", "rows"),
    _int64("logit_rows", "logits"),
    _int32("logit_slot", "logits"),
    _int32("logit_position", "logits"),
    _int32("scored_slot", "scored"),
)
STEP_ROWS = PluginCase(
    label="step-rows",
    name="StepRows",
    fields=(),
    inputs=(
        _int32("row_start", "B + 1"),
        *_by_slot("phase", "draft_index"),
        _int32("logit_start", "B + 1"),
        _int32("num_grants", 1),
        _int32("grant_place", "grants"),
        _int32("grant_page", "grants"),
        *_by_slot("kv_len", "recent_start", "lookup_budget"),
        _TOKEN_IDS,
        *_STEP_ROWS_WRITES,
    ),
    outputs=_STEP_ROWS_WRITES,
    aliases=tuple(range(11, 19)),
)

SAMPLE_ROWS = PluginCase(
    label="sample-rows",
    name="SampleRows",
    fields=(),
    inputs=(
        _LOGITS,
        _int32("logit_slot", "logits"),
        _int32("logit_position", "logits"),
        *_by_slot("phase", "draft_index"),
        TensorCase("temperature", FLOAT32, ("B",)),
        TensorCase("min_p", FLOAT32, ("B",)),
        _int64("top_k", "B"),
        TensorCase("top_p", FLOAT32, ("B",)),
        _int64("seed", "B"),
        _DRAFT_PROBS,
        _TOKEN_IDS,
    ),
    outputs=(_DRAFT_PROBS, _TOKEN_IDS, *_STATISTICS),
    aliases=(10, 11, None, None, None, None, None),
)

_ACCEPT_WRITES = (
    _TOKEN_IDS,
    *_by_slot("kv_len", "recent_start", "num_staying", "num_moving", "lookup_budget"),
    _int32("scored_slot", "scored"),
    _int32("moving_shift", "scored"),
    _int32("results", "B", "drafts + 7"),
)
ACCEPT_DRAFTS = PluginCase(
    label="accept-drafts",
    name="AcceptDrafts",
    fields=(),
    inputs=(
        _LOGITS,
        *_STATISTICS,
        _DRAFT_PROBS,
        _int32("row_start", "B + 1"),
        *_by_slot("phase"),
        _int32("logit_start", "B + 1"),
        *_by_slot("block_rows", "score_rows", "score_index", "num_drafts"),
        TensorCase("temperature", FLOAT32, ("B",)),
        _int64("seed", "B"),
        *_by_slot("end_len"),
        _int32("budget_split", "lengths", 4),
        *_ACCEPT_WRITES,
    ),
    outputs=_ACCEPT_WRITES,
    aliases=tuple(range(18, 27)),
)

_COUPLED = _fields(coupling="gumbel")
COUPLED_SAMPLE_ROWS = replace(
    SAMPLE_ROWS,
    label="sample-rows-coupled",
    fields=_COUPLED,
    inputs=tuple(each for each in SAMPLE_ROWS.inputs if each is not _DRAFT_PROBS),
    outputs=SAMPLE_ROWS.outputs[1:],
    aliases=(10, None, None, None, None, None),
)
COUPLED_ACCEPT_DRAFTS = replace(
    ACCEPT_DRAFTS,
    label="accept-drafts-coupled",
    fields=_COUPLED,
    inputs=tuple(each for each in ACCEPT_DRAFTS.inputs if each is not _DRAFT_PROBS),
    aliases=tuple(range(17, 26)),
)

CASES = (
    PILLAR_PLAN,
    PILLAR_ATTENTION,
    _with_norm(PILLAR_ATTENTION),
    _scored("mean", 1),
    _scored("diagonal", 2),
    _scored("rows", 9),
    _with_norm(_scored("rows", 17)),
    _with_fp8_cache(PILLAR_ATTENTION),
    _with_norm(_with_fp8_cache(_scored("diagonal", 2))),
    _select(1),
    _select(2),
    ADD_RMS_NORM,
    SILU_MUL,
    STEP_ROWS,
    SAMPLE_ROWS,
    ACCEPT_DRAFTS,
    COUPLED_SAMPLE_ROWS,
    COUPLED_ACCEPT_DRAFTS,
)

every_plugin = pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])


def altered(tensors: PluginTensors, place: int, desc: TensorDesc) -> PluginTensors:
    """`tensors` with another one at a place among inputs, then outputs."""
    num_inputs = len(tensors.inputs)
    every = (*tensors.inputs, *tensors.outputs)
    every = (*every[:place], desc, *every[place + 1 :])
    return PluginTensors(every[:num_inputs], every[num_inputs:])
