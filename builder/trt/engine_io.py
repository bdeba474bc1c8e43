"""What goes into the two engines and comes out: the one list that the network declares and the session binds.

draft.engine: one row per request, every row a DRAFT row whose logits are needed. verify.engine: any rows, any phases,
logits of the rows that `logit_rows` names; scored rows leave scores. Weights are inputs, so that both engines bind one
copy on the device. The mutable tensors are inputs as well, and each is the output `NAME.updated` of its only consumer,
PillarAttention of its layer: both are bound to the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from sparsespec.builder.build_config import MAX_LOOKUPS, BuildConfig, DType
from sparsespec.builder.fused_weights import WeightType, fused_specs
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.trt.config import TensorRTConfig
from sparsespec.plugins.pillar_attention.inputs import ScorePlanes, num_score_planes

EngineKind = Literal["draft", "verify"]
ElementType = Literal["float32", "float16", "bfloat16", "float8_e4m3fn", "int32", "int64"]

UPDATED = ".updated"
# TensorRT counts the elements of a tensor in 31 bits.
MAX_ELEMENTS = 2**31 - 1
# What a profile is tuned for where the build config says only how much there may be at most.
_USUAL_DRAFT_LEN = 8
_USUAL_LOOKUPS = 16


@dataclass(frozen=True)
class Sizes:
    """The sizes that are known at run time only."""

    num_rows: int
    num_logits: int
    max_batch_size: int
    num_pages: int
    max_draft_len: int
    max_lookups: int
    max_scored: int
    num_planes: int  # of score_planes "rows"


@dataclass(frozen=True)
class Axis:
    """A size of a tensor that is a field of Sizes, plus a number."""

    size: str
    plus: int = 0

    def at(self, sizes: Sizes) -> int:
        """The number."""
        number: int = getattr(sizes, self.size)
        return number + self.plus

    @property
    def name(self) -> str:
        """What TensorRT calls it: axes of one name are equal."""
        return f"{self.size} + {self.plus}" if self.plus else self.size


Extent = int | Axis


@dataclass(frozen=True)
class EngineTensor:
    """An input or an output."""

    name: str
    dtype: ElementType
    shape: tuple[Extent, ...]

    def at(self, sizes: Sizes) -> tuple[int, ...]:
        """Its shape in a step of these sizes."""
        return tuple(extent.at(sizes) if isinstance(extent, Axis) else extent for extent in self.shape)

    @property
    def declared(self) -> tuple[int, ...]:
        """Its shape as a network declares it: -1 where only the run time knows."""
        return tuple(-1 if isinstance(extent, Axis) else extent for extent in self.shape)

    @property
    def is_dynamic(self) -> bool:
        """Whether any size is known at run time only."""
        return -1 in self.declared


@dataclass(frozen=True)
class Profile:
    """Sizes that an engine is built for."""

    least: Sizes
    usual: Sizes
    most: Sizes

    def excess(self, sizes: Sizes) -> str | None:
        """What is beyond it, in words; None if nothing is."""
        for field in fields(Sizes):
            least, size, most = (getattr(each, field.name) for each in (self.least, sizes, self.most))
            if not least <= size <= most:
                return f"{field.name} in {least}..{most}, found {size}"
        return None


@dataclass(frozen=True)
class EngineIo:
    """Everything that one engine takes and gives."""

    kind: EngineKind
    weights: tuple[EngineTensor, ...]
    step: tuple[EngineTensor, ...]  # token_ids, logit_rows and the fields of StepInputs
    layers: tuple[tuple[EngineTensor, ...], ...]  # of each layer, the fields of LayerInputs but kv_scale, a weight
    logits: EngineTensor
    mutable: tuple[str, ...]  # inputs that come out again, updated in place
    profiles: tuple[Profile, ...]

    @property
    def inputs(self) -> tuple[EngineTensor, ...]:
        """All of them, in the order of the network."""
        return (*self.step, *(tensor for layer in self.layers for tensor in layer), *self.weights)

    @property
    def outputs(self) -> tuple[EngineTensor, ...]:
        """All of them: logits, then what is updated in place."""
        mutable = [tensor for tensor in self.inputs if tensor.name in self.mutable]
        return (self.logits, *(EngineTensor(each.name + UPDATED, each.dtype, each.shape) for each in mutable))


def engine_io(model: ModelConfig, build: BuildConfig, config: TensorRTConfig, kind: EngineKind) -> EngineIo:
    """What the engine of that kind takes and gives. build.dtype is concrete."""
    dtype = _element_type(build.dtype)
    planes = config.score_planes if kind == "verify" else "none"
    layers = tuple(_layer_tensors(model, build, planes, layer) for layer in range(model.num_layers))
    in_place = ("kv_pool", "draft_lse", "scores")
    return EngineIo(
        kind=kind,
        weights=tuple(
            EngineTensor(name, _element_type(spec.dtype), spec.shape)
            for name, spec in fused_specs(model, build.dtype, build.kv_cache_dtype).items()
        ),
        step=_step_tensors(model, build, kind, planes),
        layers=layers,
        logits=EngineTensor("logits", dtype, (Axis(_logits_axis(kind)), model.vocab_size)),
        mutable=tuple(each.name for layer in layers for each in layer if each.name.rpartition(".")[2] in in_place),
        profiles=engine_profiles(model, build, config.opt_batch_size, kind),
    )


def layer_tensor(layer: int, name: str) -> str:
    """Name of a layer's tensor."""
    return f"layers.{layer}.{name}"


def engine_profiles(
    model: ModelConfig, build: BuildConfig, opt_batch_size: int | None, kind: EngineKind
) -> tuple[Profile, ...]:
    """draft: one. verify: steps that only decode, and steps with chunks of prompts, both for any rows."""
    batch = build.max_batch_size
    usual = batch if opt_batch_size is None else min(opt_batch_size, batch)
    if kind == "draft":
        return (_profile(model, build, usual, usual_rows=usual, most_rows=batch),)
    decoding = min(build.max_num_tokens, batch * (build.max_draft_len + 1))
    # A unified step of n requests has about n * k / (k + 1) drafts and n verified rows.
    return (
        _profile(model, build, usual, usual_rows=min(2 * usual, decoding), most_rows=decoding),
        _profile(model, build, usual, usual_rows=build.max_num_tokens, most_rows=build.max_num_tokens),
    )


def max_pool_pages(model: ModelConfig, build: BuildConfig) -> int:
    """Pages of the largest KV pool: room for a full batch, and no more than TensorRT can count in one layer."""
    elements = 2 * model.num_kv_heads * build.page_size * model.head_dim
    return min(build.max_batch_size * build.max_pages, MAX_ELEMENTS // elements)


def row_bucket(num_rows: int) -> int:
    """Rows of the CUDA graph that runs num_rows: at most an eighth more beyond 64, so that there are few graphs."""
    if num_rows <= 8:
        return 1 << (num_rows - 1).bit_length()
    step = max(8, 1 << (num_rows - 1).bit_length() - 4)
    return -(-num_rows // step) * step


def _profile(model: ModelConfig, build: BuildConfig, usual_batch: int, usual_rows: int, most_rows: int) -> Profile:
    batch, pages, drafts = build.max_batch_size, max_pool_pages(model, build), build.max_draft_len
    most_logits = min(most_rows, batch * (drafts + 1))
    return Profile(
        least=Sizes(1, 1, 1, 1, 1, 1, 1, 1),
        usual=Sizes(
            num_rows=usual_rows,
            num_logits=min(usual_rows, most_logits),
            max_batch_size=usual_batch,
            num_pages=pages,
            max_draft_len=min(_USUAL_DRAFT_LEN, drafts),
            max_lookups=_USUAL_LOOKUPS,
            max_scored=usual_batch,
            num_planes=min(_USUAL_DRAFT_LEN, drafts) + 1,
        ),
        most=Sizes(most_rows, most_logits, batch, pages, drafts, MAX_LOOKUPS, batch, drafts + 1),
    )


def _logits_axis(kind: EngineKind) -> str:
    return "num_rows" if kind == "draft" else "num_logits"


def _step_tensors(
    model: ModelConfig, build: BuildConfig, kind: EngineKind, planes: ScorePlanes
) -> tuple[EngineTensor, ...]:
    batch = Axis("max_batch_size")

    def by_slot(*names: str) -> tuple[EngineTensor, ...]:
        return tuple(EngineTensor(name, "int32", (batch,)) for name in names)

    return (
        EngineTensor("token_ids", "int64", (Axis("num_rows"),)),
        *(() if kind == "draft" else (EngineTensor("logit_rows", "int64", (Axis("num_logits"),)),)),
        EngineTensor("row_start", "int32", (Axis("max_batch_size", plus=1),)),
        *by_slot("phase", "draft_index", "score_rows"),
        *(() if planes == "none" else by_slot("score_index")),
        *by_slot("kv_len", "recent_start", "num_staying", "num_moving"),
        EngineTensor("lookups", "int32", (batch, Axis("max_lookups"))),
        *by_slot("num_lookups"),
        EngineTensor("page_table", "int32", (batch, build.max_pages)),
        EngineTensor("rope_table", "float32", (build.scored_positions, model.head_dim)),
    )


def _layer_tensors(model: ModelConfig, build: BuildConfig, planes: ScorePlanes, layer: int) -> tuple[EngineTensor, ...]:
    batch, heads = Axis("max_batch_size"), model.num_kv_heads
    pool = (Axis("num_pages"), 2, heads, build.page_size, model.head_dim)
    num_planes: Extent = Axis("num_planes") if planes == "rows" else num_score_planes(planes, 0)
    scores = (Axis("max_scored"), num_planes, heads, build.scored_positions)
    tensors = [
        EngineTensor("kv_pool", _pool_type(build), pool),
        EngineTensor("draft_lse", "float32", (batch, Axis("max_draft_len"), model.num_heads)),
        EngineTensor("pillars", "int32", (batch, heads, build.max_pillars)),
        *(() if planes == "none" else (EngineTensor("scores", _score_type(build), scores),)),
    ]
    return tuple(EngineTensor(layer_tensor(layer, each.name), each.dtype, each.shape) for each in tensors)


def _element_type(dtype: DType | WeightType) -> ElementType:
    assert dtype != "auto", dtype
    assert dtype != "float64", dtype
    return dtype


def _pool_type(build: BuildConfig) -> ElementType:
    return "float8_e4m3fn" if build.kv_cache_dtype == "fp8" else _element_type(build.dtype)


def _score_type(build: BuildConfig) -> ElementType:
    return "float16" if build.element_size == 2 else "float32"
