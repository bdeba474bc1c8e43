"""What plugins are handed, against plugins that hand it on to the reference; and where there can be none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from built_plugins import built
from fake_plugins import FakeLibrary
from plugin_cases import plugin_library
from sparsespec.builder.build_config import BuildConfig, KvCacheDType
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.errors import InputError
from sparsespec.plugins.library import PLUGIN_DIR_VARIABLE, PLUGIN_HOST, PLUGIN_LIBRARY, plugin_library_path
from sparsespec.plugins.plugin_host import PluginError
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device import torch_executor
from sparsespec.runtime.device.attention_choice import choose_attention
from sparsespec.runtime.device.attention_ops import AttentionOps, OracleAttention, ReferenceAttention
from sparsespec.runtime.device.drafter import make_drafter
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.plugin_ops import PluginAttention
from sparsespec.runtime.llm import LLM
from tiny_llm import BUILD, DraftCounts, first_answers, greedy, random_prompts, tiny_engine, ways_to_draft
from tiny_models import tiny_model_config

PROMPTS = random_prompts((60, 33, 7, 1))
SPECULATION = SpeculationConfig(k=4, min_budget=24, max_lookups=6)
RULES = ways_to_draft(SPECULATION) | {"none": replace(SPECULATION, drafter="none")}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    """Runs instead of whatever would be chosen."""
    made = FakeLibrary()
    monkeypatch.setattr(torch_executor, "choose_attention", lambda *_: PluginAttention(made))
    return made


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("family", "cache"), [("llama", "auto"), ("qwen3", "auto"), ("llama", "fp8"), ("qwen3", "fp8")]
)
def test_every_input_is_in_its_place(family: str, cache: KvCacheDType, rule: str, library: FakeLibrary) -> None:
    """Token for token and draft for draft what the references give, requests that join and wait included."""
    model = tiny_model_config(family=family)  # type: ignore[arg-type]
    engine = tiny_engine(3, replace(BUILD, dtype="bfloat16", kv_cache_dtype=cache), model)
    outputs = LLM(engine, RULES[rule]).generate(PROMPTS, greedy(40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_executor, "choose_attention", choose_attention)
        expected = LLM(engine, RULES[rule], RuntimeConfig(attention="reference")).generate(PROMPTS, greedy(40))
    assert first_answers(outputs) == first_answers(expected)
    assert DraftCounts.of(outputs) == DraftCounts.of(expected)
    # One plan for both layers; none of them runs in a step without rows.
    assert 0 < library.runs.count("PillarAttention") <= 2 * library.runs.count("PillarPlan")
    assert (library.runs.count("PillarSelect") > 0) == (RULES[rule].drafter == "pillar")
    # Two sums and an MLP in each of two layers of every step, and the first norm.
    steps = library.runs.count("PillarPlan")
    assert library.runs.count("SiluMul") == 2 * steps
    assert library.runs.count("AddRmsNorm") == (2 * 2 + 1) * steps


@pytest.mark.parametrize("cache", ["auto", "fp8"])
@pytest.mark.parametrize("normalizer", ["draft", "exact"])
def test_fields(normalizer: str, cache: KvCacheDType, library: FakeLibrary) -> None:
    """Each plugin is made once."""
    model = replace(tiny_model_config(family="qwen3"), rms_norm_eps=3e-5)
    speculation = replace(SPECULATION, score_normalizer=normalizer)  # type: ignore[arg-type]
    LLM(tiny_engine(3, replace(BUILD, kv_cache_dtype=cache), model), speculation).generate(PROMPTS, greedy(20))
    assert library.created == [
        ("PillarSelect", {}),
        ("StepRows", {}),
        ("SampleRows", {"coupling": "rejection"}),
        ("AcceptDrafts", {"coupling": "rejection"}),
        ("PillarPlan", {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}),
        ("AddRmsNorm", {"hidden_size": model.hidden_size, "rms_norm_eps": 3e-5}),
        (
            "PillarAttention",
            {
                "num_heads": 4,
                "num_kv_heads": 2,
                "head_dim": 16,
                "page_size": 8,
                "kv_cache_dtype": cache,
                "rms_norm_eps": 3e-5,
                "qk_norm": 1,
                "score_planes": "diagonal",
                "score_normalizer": normalizer,
            },
        ),
        ("SiluMul", {"intermediate_size": model.intermediate_size}),
    ]


SERVED = EngineConfig(
    tiny_model_config(num_heads=16, num_kv_heads=1, head_dim=64),
    BuildConfig(dtype="bfloat16", max_batch_size=2, max_seq_len=64, max_num_tokens=64, max_draft_len=17, page_size=16),
)


def chosen(
    choice: str, engine: EngineConfig, speculation: SpeculationConfig, device: str, max_batch_size: int = 2
) -> AttentionOps:
    config = ExecutorConfig(max_batch_size, num_pages=8, attention=choice)  # type: ignore[arg-type]
    return choose_attention(config, engine, make_drafter(speculation), torch.device(device))


@pytest.mark.parametrize(
    ("choice", "dtype", "device"),
    [
        ("auto", "float64", "cpu"),
        ("auto", "bfloat16", "cpu"),
        ("auto", "float32", "cuda"),
        ("auto", "float64", "cuda"),
        ("reference", "bfloat16", "cuda"),
    ],
)
def test_the_references_run_where_plugins_do_not(choice: str, dtype: str, device: str) -> None:
    engine = replace(SERVED, build=replace(SERVED.build, dtype=dtype))  # type: ignore[arg-type]
    assert type(chosen(choice, engine, SPECULATION, device)) is ReferenceAttention


@pytest.mark.parametrize(("choice", "device"), [("auto", "cpu"), ("auto", "cuda"), ("reference", "cuda")])
def test_the_oracle_attends_itself(choice: str, device: str) -> None:
    assert type(chosen(choice, SERVED, SpeculationConfig(drafter="oracle"), device)) is OracleAttention


def with_model(**sizes: int) -> EngineConfig:
    return replace(SERVED, model=replace(SERVED.model, **sizes))  # type: ignore[arg-type]


def with_build(**choices: object) -> EngineConfig:
    return replace(SERVED, build=replace(SERVED.build, **choices))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("engine", "speculation", "device", "message"),
    [
        (SERVED, SPECULATION, "cpu", "expected a CUDA device, found cpu"),
        (with_build(dtype="float32"), SPECULATION, "cuda", "expected an engine of bfloat16 or float16, found float32"),
        (SERVED, SpeculationConfig(drafter="oracle"), "cuda", "pillars are chosen before its rows run, found oracle"),
        (with_model(head_dim=80), SPECULATION, "cuda", "expected head_dim 64, 96 or 128, found 80"),
        (with_build(page_size=8), SPECULATION, "cuda", "expected page_size 16, 32 or 64, found 8"),
        (with_model(num_heads=17), SPECULATION, "cuda", "expected at most 16 query heads for each KV head, found 17"),
        (SERVED, SpeculationConfig(k=17), "cuda", r"expected at most 17 rows \(k \+ 1\) in a verification, found 18"),
    ],
)
def test_what_the_plugins_do_not_serve_is_told_in_a_line(
    engine: EngineConfig, speculation: SpeculationConfig, device: str, message: str
) -> None:
    with pytest.raises(InputError, match=f"{message}; --attention reference works everywhere"):
        chosen("plugins", engine, speculation, device)


@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("page_size", [8, 16, 24, 32, 64, 128])
@pytest.mark.parametrize("group", [1, 16, 17])
def test_what_is_chosen_is_what_the_library_takes(
    head_dim: int, page_size: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PluginAttention, "try_on", lambda *_: None)
    model = replace(SERVED.model, head_dim=head_dim, num_heads=group, num_kv_heads=1)
    engine = replace(SERVED, model=model, build=replace(SERVED.build, page_size=page_size))
    fields = {"num_heads": group, "num_kv_heads": 1, "head_dim": head_dim, "page_size": page_size}
    assert _accepts(lambda: chosen("plugins", engine, SPECULATION, "cuda")) == _accepts(
        lambda: plugin_library().create("PillarAttention", fields)
    )


def _accepts(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except (InputError, PluginError):
        return False
    return True


def test_more_slots_than_a_plan_has_room_for() -> None:
    with pytest.raises(InputError, match="expected max_batch_size of at most 1024, found 1025"):
        chosen("plugins", SERVED, SPECULATION, "cuda", max_batch_size=1025)


@pytest.mark.parametrize("choice", ["auto", "plugins"])
def test_a_missing_library_is_told(choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow attention on a GPU is for those who ask for it."""
    monkeypatch.setenv(PLUGIN_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match=r"libsparsespec_plugins.so.*\n--attention reference works everywhere"):
        chosen(choice, SERVED, SPECULATION, "cuda")


def test_files_that_are_no_libraries_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PLUGIN_LIBRARY, PLUGIN_HOST):
        (tmp_path / name).write_text("no library")
    monkeypatch.setenv(PLUGIN_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match=r"expected the plugin host library.*\n--attention reference works everywhere"):
        chosen("auto", SERVED, SPECULATION, "cuda")


@pytest.mark.parametrize("choice", ["auto", "plugins"])
def test_the_plugins_serve_16_bits_on_a_gpu(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[torch.device] = []
    monkeypatch.setattr(PluginAttention, "try_on", lambda _, device, __: tried.append(device))
    built(plugin_library_path)
    assert type(chosen(choice, SERVED, SPECULATION, "cuda")) is PluginAttention
    assert tried == [torch.device("cuda")]


def test_a_gpu_that_the_library_has_no_program_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PluginError(3, "PillarPlan: cudaErrorNoKernelImageForDevice")

    monkeypatch.setattr(PluginAttention, "try_on", fail)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    built(plugin_library_path)
    with pytest.raises(InputError, match=r"do not run on Tesla T4, of compute capability 7\.5: PillarPlan: cudaError"):
        chosen("auto", SERVED, SPECULATION, "cuda")


def test_the_choice_reaches_the_executor() -> None:
    with pytest.raises(InputError, match="attention plugins: expected a CUDA device, found cpu"):
        LLM(tiny_engine(), config=RuntimeConfig(attention="plugins"))
