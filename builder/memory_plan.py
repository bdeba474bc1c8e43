"""How much device memory an engine takes, told before any is allocated, and the most requests that fit into it.

Plain arithmetic: the same shapes as the runtime's slot state and step memory, without torch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

from sparsespec.builder.build_config import MAX_LOOKUPS, BuildConfig
from sparsespec.builder.config_io import MAX_INT, check_range, check_types
from sparsespec.builder.errors import InputError
from sparsespec.builder.fused_weights import fused_specs
from sparsespec.builder.model_config import MAX_EOS_TOKEN_IDS, ModelConfig
from sparsespec.builder.rope import longest_context
from sparsespec.builder.trt.engine_io import max_pool_pages, row_bucket
from sparsespec.plugins.limits import MAX_BLOCK_ROWS, MAX_SLOTS
from sparsespec.plugins.pillar_attention.inputs import ScorePlanes, num_score_planes

# A captured graph's own memory is the driver's business: this is room for it, not a measurement.
GRAPH_ALLOWANCE = 8 * 2**20
LEFT_OUT = "temporaries of sampling, the CUDA context and its libraries, and what allocators round up"

_INT32, _INT64, _FLOAT32, _FLOAT64 = 4, 8, 4, 8
_MOST_BYTES = 2**60
# Tensors of SlotState with one number for each slot; the float ones are the sampling parameters.
_INT32_FIELDS, _INT64_FIELDS, _FLOAT_FIELDS = 8, 4, 6
# kMaxWorkers, kTileRows and kReach of the kernels' headers.
_MAX_WORKERS, _TILE_ROWS, _REACH = 512, 64, 16


@dataclass(frozen=True)
class PlannedUse:
    """What the runtime will make of an engine. Raises InputError for sizes that no engine has."""

    max_batch_size: int
    draft_len: int  # k; 0 without drafts
    score_planes: ScorePlanes
    max_lookups: int
    score_history: bool = False  # whether the drafter averages scores over verifications
    num_pages: int | None = None  # of the KV pool; None: room for a full batch, as far as the backend can have it
    tensorrt: bool = False  # else the torch executor
    weight_bytes: int | None = None  # None: as fused_weights lists them
    activation_bytes: int | None = None  # what the built engines ask for, workspace included; None: estimated
    num_graphs: int | None = None  # None: under TensorRT one for every bucket of rows, else none

    def __post_init__(self) -> None:
        check_types(self)
        check_range("max_batch_size", self.max_batch_size, least=1)
        check_range("draft_len", self.draft_len, least=0)
        check_range("max_lookups", self.max_lookups, least=0, most=MAX_LOOKUPS)
        for name in ("num_pages", "weight_bytes", "activation_bytes", "num_graphs"):
            value = getattr(self, name)
            if value is not None:
                check_range(name, value, least=0, most=_MOST_BYTES)


@dataclass(frozen=True)
class DeviceMemory:
    """A device, and the bytes of it that may be used."""

    name: str
    num_bytes: int

    def __post_init__(self) -> None:
        check_range("num_bytes", self.num_bytes, least=0, most=_MOST_BYTES)


@dataclass(frozen=True)
class MemoryItem:
    """One part of the plan."""

    name: str
    num_bytes: int
    what: str  # for people
    is_estimate: bool = False  # everything else is exact


@dataclass(frozen=True)
class MemoryPlan:
    """All that outlives a step, and the largest step. Leaves out what LEFT_OUT names."""

    model: ModelConfig
    build: BuildConfig
    use: PlannedUse
    items: tuple[MemoryItem, ...]

    @property
    def num_bytes(self) -> int:
        """Of all items."""
        return sum(item.num_bytes for item in self.items)

    @property
    def kv_bytes_per_token(self) -> int:
        """Over all layers."""
        return self.model.kv_bytes_per_token(self.build.kv_element_size)

    @property
    def distribution_bytes(self) -> int:
        """One distribution for every row that has logits in the largest step: sampling holds a few at a time."""
        return _num_logits(self.use) * self.model.vocab_size * _exact_size(self.build)

    def bytes_of(self, name: str) -> int:
        """Of one item; 0 where the plan has none of that name."""
        return sum(item.num_bytes for item in self.items if item.name == name)


def full_use(build: BuildConfig, score_planes: ScorePlanes, tensorrt: bool) -> PlannedUse:
    """Everything that the build allows: batch, drafts and lookups."""
    return PlannedUse(build.max_batch_size, build.max_draft_len, score_planes, MAX_LOOKUPS, tensorrt=tensorrt)


def memory_plan(model: ModelConfig, build: BuildConfig, use: PlannedUse) -> MemoryPlan:
    """What an engine takes in that use. Raises InputError where the build allows less, or has no concrete dtype."""
    _check_dtype(build)
    check_range("max_batch_size", use.max_batch_size, least=1, most=build.max_batch_size)
    check_range("draft_len", use.draft_len, least=0, most=build.max_draft_len)
    items = (
        _weights(model, build, use),
        _kv_cache(model, build, use),
        *_drafting(model, build, use),
        *_slots(build, use),
        *_tables(model, build),
        *_step(model, build, use),
        *_engine(model, build, use),
    )
    return MemoryPlan(model, build, use, tuple(item for item in items if item.num_bytes))


def largest_batch(model: ModelConfig, build: BuildConfig, use: PlannedUse, free_bytes: int, context: int) -> int:
    """Most requests of `context` tokens each that fit at once; 0 if not even one does.

    That is the largest max_batch_size of an engine with max_seq_len `context`, otherwise like `build`, that has KV
    pages for a full batch. Raises InputError for a context beyond the model's.
    """
    check_range("context", context, least=1, most=_longest(model))
    fits = _fits(model, build, use, free_bytes)
    return _most_that_fits(most_requests(build, use), fits, lambda number: (number, context))


def largest_context(model: ModelConfig, build: BuildConfig, use: PlannedUse, free_bytes: int, batch: int) -> int:
    """Most tokens, up to the model's limit, of each of `batch` requests that fit at once; 0 if not even one does.

    That is the largest max_seq_len of an engine with max_batch_size `batch`, otherwise like `build`, that has KV pages
    for a full batch.
    """
    fits = _fits(model, build, use, free_bytes)
    check_range("batch", batch, least=1, most=most_requests(build, use))
    return _most_that_fits(_longest(model), fits, lambda number: (batch, number))


def most_requests(build: BuildConfig, use: PlannedUse) -> int:
    """As many as the kernels serve, and as a step has rows for."""
    return MAX_SLOTS if _has_plugins(build, use) else MAX_INT // (build.max_draft_len + 1)


def activation_bytes(model: ModelConfig, build: BuildConfig) -> int:
    """Of one layer: the residual stream and, alive beside it, the widest pair of an op's input and output."""
    hidden, gated = model.hidden_size, model.intermediate_size
    attended = model.num_heads * model.head_dim
    qkv = attended + 2 * model.num_kv_heads * model.head_dim
    chain = (hidden, qkv, attended, hidden, 2 * gated, gated, hidden)
    widest = max(before + after for before, after in pairwise(chain))
    return build.max_num_tokens * (hidden + widest) * build.element_size


def workspace_bytes(model: ModelConfig) -> int:
    """PillarAttention's workspace: two parts for each worker; pillar_attention_workspace_size in launch.cu."""
    block = -(-MAX_BLOCK_ROWS * (model.num_heads // model.num_kv_heads) // 4) * 4
    part = max(block, _TILE_ROWS) * (model.head_dim + 2) + _REACH
    return 2 * _MAX_WORKERS * part * _FLOAT32


def num_row_buckets(most_rows: int) -> int:
    """Of steps of 1 to most_rows rows."""
    count, rows = 0, 0
    while rows < most_rows:
        count, rows = count + 1, row_bucket(rows + 1)
    return count


def _check_dtype(build: BuildConfig) -> None:
    if build.dtype == "auto":
        raise InputError("dtype must be known to plan memory, found 'auto'")


def _weights(model: ModelConfig, build: BuildConfig, use: PlannedUse) -> MemoryItem:
    size = use.weight_bytes
    if size is None:
        size = sum(spec.num_bytes for spec in fused_specs(model, build.dtype, build.kv_cache_dtype).values())
    kinds = build.dtype if model.quantization is None else f"{model.quantization} and {build.dtype}"
    return MemoryItem("weights", size, f"{kinds}; one copy, whichever engine runs")


def _kv_cache(model: ModelConfig, build: BuildConfig, use: PlannedUse) -> MemoryItem:
    pages, full = _num_pages(model, build, use), use.max_batch_size * build.max_pages
    token = model.kv_bytes_per_token(build.kv_element_size)
    kind = "" if build.kv_cache_dtype == "auto" else f" in {build.kv_cache_dtype}"
    short = "" if pages == full else f"; a full batch would fill {full:,}"
    what = f"{pages:,} pages of {build.page_size} tokens, {token:,} bytes per token{kind}{short}"
    return MemoryItem("kv_cache", pages * build.page_size * token, what)


def _drafting(model: ModelConfig, build: BuildConfig, use: PlannedUse) -> tuple[MemoryItem, ...]:
    """What drafting adds to plain decoding."""
    slots, layers, drafts = use.max_batch_size, model.num_layers, use.draft_len
    heads, positions, exact = model.num_kv_heads, build.scored_positions, _exact_size(build)
    planes, score = num_score_planes(use.score_planes, drafts + 1), 2 if build.element_size == 2 else exact
    pillars = layers * slots * heads * build.max_pillars * _INT32
    scores = layers * slots * planes * heads * positions * score
    history = layers * slots * heads * positions * exact if use.score_history else 0
    lse = layers * slots * max(1, drafts) * model.num_heads * exact
    probs = slots * drafts * model.vocab_size * exact
    each = "per layer, request and KV head"
    return (
        MemoryItem("pillars", pillars, f"{build.max_pillars:,} positions {each}"),
        MemoryItem("scores", scores, f"{planes} x {positions:,} positions {each} ({use.score_planes})"),
        MemoryItem("score_history", history, f"{positions:,} positions {each}"),
        MemoryItem("draft_lse", lse, "log-sum-exp per draft, layer, request and head"),
        MemoryItem("draft_probs", probs, f"{drafts} distributions over {model.vocab_size:,} tokens per request"),
    )


def _slots(build: BuildConfig, use: PlannedUse) -> tuple[MemoryItem, ...]:
    """The rest of SlotState."""
    slots = use.max_batch_size
    token_ids = (build.max_positions + 1) * _INT64
    numbers = (
        (_INT32_FIELDS + max(1, use.max_lookups)) * _INT32
        + (_INT64_FIELDS + MAX_EOS_TOKEN_IDS) * _INT64
        + _FLOAT_FIELDS * _exact_size(build)
    )
    return (
        MemoryItem("token_ids", slots * token_ids, "prompt, answer and drafts"),
        MemoryItem("page_table", slots * build.max_pages * _INT32, f"{build.max_pages:,} page numbers per request"),
        MemoryItem("slot_state", slots * numbers, "lengths, lookups and sampling parameters"),
    )


def _tables(model: ModelConfig, build: BuildConfig) -> tuple[MemoryItem, ...]:
    positions = build.scored_positions
    rope = positions * model.head_dim * _exact_size(build)
    return (
        MemoryItem("rope_table", rope, f"cosines and sines of {positions:,} positions"),
        MemoryItem("budget", build.max_positions * _INT64, "tokens that draft rows read, by position"),
    )


def _step(model: ModelConfig, build: BuildConfig, use: PlannedUse) -> tuple[MemoryItem, ...]:
    """Inputs and output of the largest step."""
    logits, slots = _num_logits(use), use.max_batch_size
    if use.tensorrt:  # graphs are of whole buckets
        logits = min(row_bucket(logits), build.max_batch_size * (build.max_draft_len + 1))
    # row_start is [slots + 1]; phase, draft_index, score_rows and score_index are [slots].
    inputs = (build.max_num_tokens + logits) * _INT64 + (5 * slots + 1) * _INT32
    size = logits * model.vocab_size * build.element_size
    return (
        MemoryItem("logits", size, f"of {logits:,} rows over {model.vocab_size:,} tokens"),
        MemoryItem("step_inputs", inputs, f"of {build.max_num_tokens:,} rows"),
    )


def _engine(model: ModelConfig, build: BuildConfig, use: PlannedUse) -> tuple[MemoryItem, ...]:
    """What executing takes. TensorRT counts a plugin's workspace among an engine's activations."""
    graphs = _num_graphs(use)
    allowance = MemoryItem(
        "graphs",
        graphs * GRAPH_ALLOWANCE,
        f"allowance: {GRAPH_ALLOWANCE // 2**20} MiB for each of {graphs} CUDA graphs",
        is_estimate=True,
    )
    if use.activation_bytes is not None:
        return MemoryItem("activations", use.activation_bytes, "as the engines ask, workspace included"), allowance
    workspace = workspace_bytes(model) if _has_plugins(build, use) else 0
    return (
        MemoryItem("workspace", workspace, f"of PillarAttention: two parts for each of {_MAX_WORKERS} workers"),
        MemoryItem(
            "activations",
            activation_bytes(model, build),
            f"estimate: {build.max_num_tokens:,} rows of the three widest tensors alive at once",
            is_estimate=True,
        ),
        allowance,
    )


def _num_pages(model: ModelConfig, build: BuildConfig, use: PlannedUse) -> int:
    most = use.max_batch_size * build.max_pages
    if use.tensorrt:
        most = max_pool_pages(model, replace(build, max_batch_size=use.max_batch_size))
    if use.num_pages is None:
        return most
    check_range("num_pages", use.num_pages, least=1, most=most)
    return use.num_pages


def _num_logits(use: PlannedUse) -> int:
    return use.max_batch_size * (use.draft_len + 1)


def _num_graphs(use: PlannedUse) -> int:
    """Of draft.engine, for steps of drafts alone, and of verify.engine, for those of any decoding rows."""
    if use.num_graphs is not None:
        return use.num_graphs
    if not use.tensorrt:
        return 0
    return num_row_buckets(_num_logits(use)) + (num_row_buckets(use.max_batch_size) if use.draft_len else 0)


def _exact_size(build: BuildConfig) -> int:
    """In which sums and distributions are kept."""
    return _FLOAT64 if build.dtype == "float64" else _FLOAT32


def _has_plugins(build: BuildConfig, use: PlannedUse) -> bool:
    return use.tensorrt or build.element_size == 2


def _longest(model: ModelConfig) -> int:
    return min(longest_context(model.max_position_embeddings, model.rope_scaling), MAX_INT)


def _fits(model: ModelConfig, build: BuildConfig, use: PlannedUse, free_bytes: int) -> Callable[[int, int], bool]:
    """Whether as many requests of as many tokens do, each bringing everything it needs."""
    _check_dtype(build)
    check_range("free_bytes", free_bytes, least=0, most=_MOST_BYTES)
    known = replace(use, num_pages=None, weight_bytes=_weights(model, build, use).num_bytes)

    def fits(batch: int, context: int) -> bool:
        rows = max(build.max_num_tokens, batch * (build.max_draft_len + 1))
        engine = replace(build, max_batch_size=batch, max_seq_len=context, max_num_tokens=rows)
        own = replace(known, max_batch_size=batch, activation_bytes=_scaled(use.activation_bytes, rows, build))
        holds_all = _num_pages(model, engine, own) == batch * engine.max_pages
        return holds_all and memory_plan(model, engine, own).num_bytes <= free_bytes

    return fits


def _scaled(activation_bytes: int | None, rows: int, build: BuildConfig) -> int | None:
    """Activations go by the rows of a step."""
    return None if activation_bytes is None else -(-activation_bytes * rows // build.max_num_tokens)


def _most_that_fits(most: int, fits: Callable[[int, int], bool], sizes: Callable[[int], tuple[int, int]]) -> int:
    """Largest number up to `most` whose batch and context fit. Nothing in a plan shrinks when either grows."""
    return bisect_left(range(1, most + 1), True, key=lambda number: not fits(*sizes(number)))
