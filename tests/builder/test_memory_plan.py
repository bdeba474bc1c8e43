from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import pytest
import torch
from rich.console import Console
from torch import Tensor

from plugin_cases import PILLAR_ATTENTION
from sparsespec.builder.build_config import MAX_LOOKUPS, BuildConfig, KvCacheDType
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.errors import InputError
from sparsespec.builder.memory_plan import (
    GRAPH_ALLOWANCE,
    DeviceMemory,
    MemoryPlan,
    PlannedUse,
    full_use,
    largest_batch,
    largest_context,
    memory_plan,
    num_row_buckets,
    workspace_bytes,
)
from sparsespec.builder.memory_table import memory_size, memory_table
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.trt.config import TensorRTConfig
from sparsespec.builder.trt.engine_io import MAX_ELEMENTS, EngineTensor, Sizes, engine_io, max_pool_pages, row_bucket
from sparsespec.plugins.pillar_attention.inputs import StepInputs
from sparsespec.plugins.plugin_host import plugin_field
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.drafter import make_drafter
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.slot_state import SlotState
from sparsespec.runtime.device.step_batch import StepMemory
from sparsespec.runtime.device.torch_executor import make_memory
from sparsespec.runtime.trt.buffers import BufferSizes, make_buffers
from tiny_models import random_weights, tiny_model_config

TINY = tiny_model_config()
TINY_BUILD = BuildConfig(
    dtype="float32", max_batch_size=3, max_seq_len=64, max_num_tokens=64, max_draft_len=4, max_budget=64
)
TINY_USE = PlannedUse(max_batch_size=2, draft_len=4, score_planes="diagonal", max_lookups=16)

QWEN3_8B = ModelConfig(
    family="qwen3",
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=12_288,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    max_position_embeddings=40_960,
    tie_word_embeddings=False,
    eos_token_ids=(151_645,),
)
QWEN3_BUILD = BuildConfig(dtype="bfloat16", max_batch_size=96, max_seq_len=8192, max_num_tokens=2048, max_draft_len=8)
QWEN3_USE = PlannedUse(96, 8, "diagonal", 16, tensorrt=True)
H200 = DeviceMemory("an H200", 141 * 10**9)

SPECULATION = [
    SpeculationConfig(k=4, min_budget=8),
    SpeculationConfig(k=1, min_budget=8),
    SpeculationConfig(k=3, min_budget=8, moving_from="last", max_lookups=40),
    SpeculationConfig(k=4, min_budget=8, moving_share=0.0, max_lookups=0),
    SpeculationConfig(k=4, min_budget=8, ranking="average"),
    SpeculationConfig(k=2, min_budget=8, drafter="window"),
    SpeculationConfig(k=4, drafter="ngram"),
    SpeculationConfig(drafter="none"),
]

OWN_ITEM = {"pillars", "draft_lse", "score_history", "draft_probs", "token_ids", "page_table"}
MEMORY_ITEMS = {"kv_pool": "kv_cache", "scores": "scores", "rope_table": "rope_table", "budget": "budget"}
ALLOCATED = (*sorted(OWN_ITEM), *MEMORY_ITEMS.values(), "slot_state")


def size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def allocated(memory: StepMemory) -> dict[str, int]:
    """Bytes of what make_memory allocated, by item of the plan."""
    sizes = dict.fromkeys(ALLOCATED, 0)
    for field in fields(SlotState):
        sizes[field.name if field.name in OWN_ITEM else "slot_state"] += size(getattr(memory.state, field.name))
    for name, item in MEMORY_ITEMS.items():
        sizes[item] += size(getattr(memory, name))
    return sizes


def planned(plan: MemoryPlan) -> dict[str, int]:
    return {name: plan.bytes_of(name) for name in ALLOCATED}


def use_of(speculation: SpeculationConfig, config: ExecutorConfig) -> PlannedUse:
    needs = make_drafter(speculation).needs
    return PlannedUse(
        max_batch_size=config.max_batch_size,
        draft_len=speculation.draft_len,
        score_planes=needs.score_planes,
        max_lookups=needs.max_lookups,
        score_history=needs.score_history,
        num_pages=config.num_pages,
    )


@pytest.mark.parametrize("cache", ["auto", "fp8"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("config", [ExecutorConfig(1, 5), ExecutorConfig(3, 15)], ids=["one", "three"])
@pytest.mark.parametrize("speculation", SPECULATION)
def test_the_plan_is_what_is_allocated(
    dtype: str, cache: str, config: ExecutorConfig, speculation: SpeculationConfig
) -> None:
    build = replace(TINY_BUILD, dtype=dtype, kv_cache_dtype=cache)
    memory = make_memory(EngineConfig(TINY, build), make_drafter(speculation), config, torch.device("cpu"))
    assert allocated(memory) == planned(memory_plan(TINY, build, use_of(speculation, config)))


def test_every_field_of_step_memory_is_planned() -> None:
    """But for vocab_size, which is a number."""
    assert {field.name for field in fields(StepMemory)} == {"state", "layers", "vocab_size", *MEMORY_ITEMS}


def test_the_plan_of_a_real_model_is_what_would_be_allocated() -> None:
    """On a device without memory."""
    speculation = SpeculationConfig(k=8)
    config = ExecutorConfig(96, 96 * QWEN3_BUILD.max_pages)
    engine = EngineConfig(QWEN3_8B, QWEN3_BUILD)
    memory = make_memory(engine, make_drafter(speculation), config, torch.device("meta"))
    assert use_of(speculation, config) == replace(QWEN3_USE, num_pages=config.num_pages, tensorrt=False)
    assert allocated(memory) == planned(memory_plan(QWEN3_8B, QWEN3_BUILD, QWEN3_USE))


@pytest.mark.parametrize(
    "model",
    [
        TINY,
        tiny_model_config(family="qwen3", tie_word_embeddings=True),
        tiny_model_config(family="qwen2", quantization="fp8"),
    ],
    ids=["plain", "tied", "fp8"],
)
@pytest.mark.parametrize("cache", ["auto", "fp8"])
def test_weights(model: ModelConfig, cache: KvCacheDType) -> None:
    weights = random_weights(model, torch.bfloat16, 0, cache)
    plan = memory_plan(model, replace(TINY_BUILD, dtype="bfloat16", kv_cache_dtype=cache), TINY_USE)
    assert plan.bytes_of("weights") == sum(size(weight) for weight in weights.values())
    given = memory_plan(model, TINY_BUILD, replace(TINY_USE, weight_bytes=77))
    assert given.bytes_of("weights") == 77


@pytest.mark.parametrize("cache", ["auto", "fp8"])
@pytest.mark.parametrize("model", [QWEN3_8B, replace(QWEN3_8B, quantization="fp8")], ids=["bf16", "fp8"])
def test_the_plan_is_what_the_engines_bind(model: ModelConfig, cache: KvCacheDType) -> None:
    build = replace(QWEN3_BUILD, kv_cache_dtype=cache)
    io = engine_io(model, build, TensorRTConfig(), "verify")
    plan = memory_plan(model, build, QWEN3_USE)
    most = replace(io.profiles[-1].most, max_lookups=QWEN3_USE.max_lookups)
    layers = [tensor for layer in io.layers for tensor in layer]
    for name, item in (("kv_pool", "kv_cache"), ("draft_lse",) * 2, ("pillars",) * 2, ("scores",) * 2):
        assert plan.bytes_of(item) == bound([each for each in layers if each.name.endswith(f".{name}")], most), name
    assert plan.bytes_of("weights") == bound(io.weights, most)
    assert plan.bytes_of("logits") == bound([io.logits], most)
    # All that is not state of the slots.
    state = {field.name for field in fields(SlotState)} & {field.name for field in fields(StepInputs)}
    inputs = [tensor for tensor in io.step if tensor.name not in {*state, "rope_table"}]
    assert plan.bytes_of("step_inputs") == bound(inputs, most)
    assert plan.bytes_of("rope_table") == bound([each for each in io.step if each.name == "rope_table"], most)


def bound(tensors: Sequence[EngineTensor], sizes: Sizes) -> int:
    """Bytes of tensors of an engine."""
    bytes_of = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "int32": 4, "int64": 8}
    return sum(torch.Size(tensor.at(sizes)).numel() * bytes_of[tensor.dtype] for tensor in tensors)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (8, 8), (15, 3), (32, 8), (64, 8), (16, 1)])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_workspace_is_what_the_plugin_asks_for(heads: int, kv_heads: int, head_dim: int) -> None:
    model = tiny_model_config(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)
    sizes = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim, "page_size": 16}
    case = PILLAR_ATTENTION.with_fields(tuple(plugin_field(*each) for each in sizes.items()))
    assert workspace_bytes(model) == case.create().workspace_size(case.tensors())


def test_workspace_is_counted_where_plugins_run() -> None:
    assert memory_plan(TINY, TINY_BUILD, TINY_USE).bytes_of("workspace") == 0
    half = replace(TINY_BUILD, dtype="float16")
    assert memory_plan(TINY, half, TINY_USE).bytes_of("workspace") == workspace_bytes(TINY)


def test_activations() -> None:
    """8 rows: the hidden state of 64; beside it, gate and up of 256 and their product of 128."""
    build = replace(TINY_BUILD, dtype="float16", max_batch_size=1, max_num_tokens=8)
    estimated = memory_plan(TINY, build, replace(TINY_USE, max_batch_size=1))
    assert estimated.bytes_of("activations") == 8 * (64 + 256 + 128) * 2
    known = memory_plan(TINY, build, replace(TINY_USE, max_batch_size=1, activation_bytes=12_345))
    assert (known.bytes_of("activations"), known.bytes_of("workspace")) == (12_345, 0)
    assert [item.name for item in estimated.items if item.is_estimate] == ["activations"]
    assert [item.name for item in known.items if item.is_estimate] == []


def test_graphs() -> None:
    """Drafts of 1, 2 and 3 requests; steps of 1, 2, 4, 8 and 15 rows."""
    use = replace(TINY_USE, max_batch_size=3, tensorrt=True)
    assert memory_plan(TINY, TINY_BUILD, use).bytes_of("graphs") == (3 + 5) * GRAPH_ALLOWANCE
    assert memory_plan(TINY, TINY_BUILD, replace(use, num_graphs=2)).bytes_of("graphs") == 2 * GRAPH_ALLOWANCE
    assert memory_plan(TINY, TINY_BUILD, replace(use, tensorrt=False)).bytes_of("graphs") == 0
    # Plain decoding never runs draft.engine.
    assert memory_plan(TINY, TINY_BUILD, replace(use, draft_len=0)).bytes_of("graphs") == 3 * GRAPH_ALLOWANCE


def test_buckets_are_those_of_the_session() -> None:
    for most in (1, 2, 3, 96, 864, 2000):
        assert num_row_buckets(most) == len({row_bucket(rows) for rows in range(1, most + 1)})


def test_a_sessions_buffers_are_planned() -> None:
    """13 requests verify 65 rows: a bucket of 72, if the engines have that many."""
    build = replace(TINY_BUILD, max_batch_size=20, max_num_tokens=128)
    use = replace(TINY_USE, max_batch_size=13, tensorrt=True)
    sizes = BufferSizes(rows=128, logits=72, slots=13, vocab_size=TINY.vocab_size)
    buffers = make_buffers(sizes, torch.float32, torch.device("cpu")).by_name()
    plan = memory_plan(TINY, build, use)
    assert plan.bytes_of("logits") == size(buffers["logits"])
    inputs = sum(size(each) for name, each in buffers.items() if name != "logits")
    assert plan.bytes_of("step_inputs") == inputs
    assert memory_plan(TINY, replace(build, max_batch_size=13), use).bytes_of("logits") == 65 * 128 * 4
    assert memory_plan(TINY, build, replace(use, tensorrt=False)).bytes_of("logits") == 65 * 128 * 4


def planned_total(batch: int, context: int, use: PlannedUse = TINY_USE) -> int:
    rows = max(64, batch * 5)
    build = replace(TINY_BUILD, max_batch_size=batch, max_seq_len=context, max_num_tokens=rows)
    return memory_plan(TINY, build, replace(use, max_batch_size=batch)).num_bytes


@pytest.mark.parametrize("context", [1, 11, 64, 500])
@pytest.mark.parametrize("free_bytes", [0, 10**6, 2 * 10**6, 10**7])
def test_the_largest_batch_is_found(context: int, free_bytes: int) -> None:
    batch = 0
    while planned_total(batch + 1, context) <= free_bytes:
        batch += 1
    assert largest_batch(TINY, TINY_BUILD, TINY_USE, free_bytes, context) == batch


@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("free_bytes", [0, 10**6, 2 * 10**6, 5 * 10**6])
def test_the_largest_context_is_found(batch: int, free_bytes: int) -> None:
    context = 0
    while planned_total(batch, context + 1) <= free_bytes:
        context += 1
    assert largest_context(TINY, TINY_BUILD, TINY_USE, free_bytes, batch) == context


@pytest.mark.parametrize("use", [TINY_USE, replace(TINY_USE, tensorrt=True)], ids=["torch", "tensorrt"])
def test_nothing_shrinks_as_batch_or_context_grow(use: PlannedUse) -> None:
    """What the search relies on; page by page and bucket by bucket."""
    by_batch = [planned_total(batch, 50, use) for batch in range(1, 200)]
    by_context = [planned_total(5, context, use) for context in range(1, 200)]
    assert by_batch == sorted(by_batch)
    assert by_context == sorted(by_context)


def test_one_byte_decides() -> None:
    needed = planned_total(7, 100)
    found = [largest_batch(TINY, TINY_BUILD, TINY_USE, needed - less, 100) for less in (0, 1)]
    assert found == [7, 6]
    assert largest_context(TINY, TINY_BUILD, TINY_USE, needed, 7) == 100
    assert largest_context(TINY, TINY_BUILD, TINY_USE, needed - 1, 7) == 99


def test_no_more_than_the_model_and_the_kernels_serve() -> None:
    plenty = 10**15
    assert largest_context(TINY, TINY_BUILD, TINY_USE, plenty, 1) == TINY.max_position_embeddings
    half = replace(TINY_BUILD, dtype="float16")
    assert largest_batch(TINY, half, TINY_USE, plenty, 100) == 1024
    assert largest_batch(TINY, TINY_BUILD, TINY_USE, plenty, 100) > 1024


def test_pages_that_were_asked_for_do_not_count_for_another_batch() -> None:
    needed = planned_total(7, 100)
    for use in (TINY_USE, replace(TINY_USE, num_pages=1), replace(TINY_USE, max_batch_size=3)):
        assert largest_batch(TINY, TINY_BUILD, use, needed, 100) == 7


def test_known_activations_grow_with_the_rows() -> None:
    """Up to 12 requests the 64 rows do; 13 need 65."""
    use = replace(TINY_USE, activation_bytes=64 * 1000)
    needed = planned_total(12, 100, use)
    assert largest_batch(TINY, TINY_BUILD, use, needed, 100) == 12
    scaled = planned_total(13, 100, replace(use, activation_bytes=65 * 1000))
    assert [largest_batch(TINY, TINY_BUILD, use, scaled - less, 100) for less in (0, 1)] == [13, 12]


def test_tensorrt_counts_no_further_than_its_tensors_go() -> None:
    """A layer's pool of Qwen3-8B has 2 * 8 * 16 * 128 elements per page, hence at most 65,535 pages."""
    assert MAX_ELEMENTS // (2 * 8 * 16 * 128) == 65_535
    plenty, pages = 10**14, -(-(32_768 + 9) // 16)
    other = replace(QWEN3_USE, tensorrt=False)
    assert largest_batch(QWEN3_8B, QWEN3_BUILD, QWEN3_USE, plenty, 32_768) == 65_535 // pages
    assert largest_batch(QWEN3_8B, QWEN3_BUILD, other, plenty, 32_768) == 1024
    long = replace(QWEN3_BUILD, max_seq_len=32_768)
    plan = memory_plan(QWEN3_8B, long, QWEN3_USE)
    assert plan.bytes_of("kv_cache") == max_pool_pages(QWEN3_8B, long) * 16 * 147_456
    assert "65,535 pages of 16 tokens" in plan.items[1].what
    assert f"full batch would fill {96 * pages:,}" in plan.items[1].what
    with pytest.raises(InputError, match="num_pages must be at most 65535, found 65536"):
        memory_plan(QWEN3_8B, long, replace(QWEN3_USE, num_pages=65_536))


def test_full_use_is_all_that_the_build_allows() -> None:
    assert full_use(TINY_BUILD, "rows", tensorrt=True) == PlannedUse(3, 4, "rows", MAX_LOOKUPS, tensorrt=True)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: replace(TINY_USE, max_batch_size=0), "max_batch_size must be at least 1, found 0"),
        (lambda: replace(TINY_USE, draft_len=-1), "draft_len must be at least 0, found -1"),
        (lambda: replace(TINY_USE, max_lookups=257), "max_lookups must be at most 256, found 257"),
        (lambda: replace(TINY_USE, score_planes="all"), "score_planes: expected one of none, .*, found 'all'"),
        (lambda: replace(TINY_USE, weight_bytes=-1), "weight_bytes must be at least 0, found -1"),
        (lambda: replace(TINY_USE, num_pages=1.5), "num_pages: expected int, found 1.5"),
        (lambda: DeviceMemory("a GPU", -1), "num_bytes must be at least 0, found -1"),
        (lambda: plan_of(replace(TINY_USE, max_batch_size=4)), "max_batch_size must be at most 3, found 4"),
        (lambda: plan_of(replace(TINY_USE, draft_len=5)), "draft_len must be at most 4, found 5"),
        (lambda: plan_of(replace(TINY_USE, num_pages=0)), "num_pages must be at least 1, found 0"),
        (lambda: plan_of(replace(TINY_USE, num_pages=11)), "num_pages must be at most 10, found 11"),
        (lambda: largest_batch(TINY, TINY_BUILD, TINY_USE, 1, 8193), "context must be at most 8192, found 8193"),
        (lambda: largest_batch(TINY, TINY_BUILD, TINY_USE, -1, 1), "free_bytes must be at least 0, found -1"),
        (lambda: largest_context(TINY, TINY_BUILD, TINY_USE, 1, 0), "batch must be at least 1, found 0"),
        (
            lambda: largest_context(TINY, replace(TINY_BUILD, dtype="float16"), TINY_USE, 1, 1025),
            "batch must be at most 1024, found 1025",
        ),
        (lambda: memory_plan(TINY, BuildConfig(), TINY_USE), "dtype must be known to plan memory, found 'auto'"),
        (lambda: largest_batch(TINY, BuildConfig(), TINY_USE, 1, 1), "dtype must be known to plan memory"),
        (lambda: largest_context(TINY, BuildConfig(), TINY_USE, 1, 1), "dtype must be known to plan memory"),
    ],
)
def test_what_no_engine_has_is_refused(use: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        use()


def plan_of(use: PlannedUse) -> MemoryPlan:
    return memory_plan(TINY, TINY_BUILD, use)


def test_planning_imports_no_torch_and_no_runtime() -> None:
    code = (
        "import sys, sparsespec.builder.memory_plan, sparsespec.builder.memory_table\n"
        "print([name for name in sys.modules if name in ('torch', 'tensorrt', 'numpy', 'sparsespec.runtime')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def printed(plan: MemoryPlan, limit: DeviceMemory | None) -> list[str]:
    console = Console(width=96, color_system=None)
    with console.capture() as capture:
        console.print(memory_table(plan, limit))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_qwen3_8b_on_one_gpu() -> None:
    plan = memory_plan(QWEN3_8B, QWEN3_BUILD, QWEN3_USE)
    assert plan.kv_bytes_per_token == 2 * 36 * 8 * 128 * 2 == 147_456
    # 36 layers; embedding and lm_head; norms.
    layer = 4096 * (6144 + 4096 + 3 * 12_288) + 2 * 4096 + 2 * 128
    assert plan.bytes_of("weights") == 2 * (36 * layer + 2 * 151_936 * 4096 + 4096) == 16_381_470_720
    # 8192 + 8 + 1 tokens fill 513 pages.
    assert plan.bytes_of("kv_cache") == 96 * 513 * 16 * 147_456 == 116_190_609_408
    assert plan.bytes_of("draft_probs") == 96 * 8 * 151_936 * 4 == 466_747_392
    assert plan.bytes_of("logits") == 96 * 9 * 151_936 * 2 == 262_545_408
    # 8201 positions, rounded up to 8320.
    assert plan.bytes_of("scores") == 36 * 96 * 2 * 8 * 8320 * 2 == 920_125_440
    assert plan.bytes_of("pillars") == 36 * 96 * 8 * 2048 * 4 == 226_492_416
    assert plan.bytes_of("workspace") == 2 * 512 * (68 * 130 + 16) * 4 == 36_274_176
    lines = printed(plan, H200)
    print("\n".join(lines))
    assert max(map(len, lines)) <= 96
    shown = {line.split()[0]: line for line in lines if line}
    assert re.match(
        r"kv_cache +116\.19 GB +8\d\.\d% +49,248 pages of 16 tokens, 147,456 bytes per token", shown["kv_cache"]
    )
    assert re.match(r"graphs +~\d+\.\d\d MB", shown["graphs"])
    batches = [line for line in lines if line.startswith("largest batch")]
    expected = [largest_batch(QWEN3_8B, QWEN3_BUILD, QWEN3_USE, H200.num_bytes, each) for each in (2048, 8192, 32_768)]
    assert [int(line.split()[2].replace(",", "")) for line in batches] == expected
    assert expected == sorted(expected, reverse=True)


def test_an_fp8_cache_takes_half() -> None:
    build = replace(QWEN3_BUILD, kv_cache_dtype="fp8")
    plan, plain = memory_plan(QWEN3_8B, build, QWEN3_USE), memory_plan(QWEN3_8B, QWEN3_BUILD, QWEN3_USE)
    assert plan.kv_bytes_per_token == 73_728
    assert plan.bytes_of("kv_cache") == plain.bytes_of("kv_cache") / 2
    assert plan.bytes_of("weights") == plain.bytes_of("weights") + 36 * 2 * 8 * 4  # a scale for each head
    others = [item for item in plan.items if item.name not in ("kv_cache", "weights")]
    assert others == [item for item in plain.items if item.name not in ("kv_cache", "weights")]
    assert any("73,728 bytes per token in fp8" in line for line in printed(plan, None))
    use = replace(QWEN3_USE, tensorrt=False)  # which counts elements, not bytes
    batches = [largest_batch(QWEN3_8B, each, use, H200.num_bytes, 8192) for each in (QWEN3_BUILD, build)]
    assert batches[1] > 1.8 * batches[0]


def test_a_plan_without_a_device() -> None:
    lines = printed(memory_plan(TINY, TINY_BUILD, TINY_USE), None)
    print("\n".join(lines))
    assert not [line for line in lines if line.startswith(("largest", "left", "missing"))]
    assert any(line.startswith("total") for line in lines)


def test_a_plan_that_does_not_fit() -> None:
    plan = memory_plan(TINY, TINY_BUILD, TINY_USE)
    lines = printed(plan, DeviceMemory("a small GPU", plan.num_bytes - 2_000))
    assert any(re.match(r"missing +2\.00 kB +of .* on a small GPU", line) for line in lines)
    exactly = printed(plan, DeviceMemory("a small GPU", plan.num_bytes))
    assert any(re.match(r"left +0\.00 kB +0\.0% +of .* on a small GPU", line) for line in exactly)
    assert any(re.match(rf"largest context +{TINY_BUILD.max_seq_len} ", line) for line in exactly)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0.00 kB"), (1234, "1.23 kB"), (1_234_567, "1.23 MB"), (116_190_609_408, "116.19 GB")],
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert memory_size(num_bytes) == text
