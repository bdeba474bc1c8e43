"""What plugins are handed, against plugins that hand it on to the reference; and where there can be none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fake_plugins import FakeLibrary
from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.errors import InputError
from sparsespec.plugins.library import PLUGIN_DIR_VARIABLE
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device import torch_executor
from sparsespec.runtime.device.attention_choice import choose_attention
from sparsespec.runtime.device.attention_ops import AttentionOps, OracleAttention, ReferenceAttention
from sparsespec.runtime.device.drafter import make_drafter
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.plugin_ops import PluginAttention
from sparsespec.runtime.llm import LLM
from tiny_llm import BUILD, DraftCounts, first_answers, greedy, random_prompts, tiny_engine
from tiny_models import tiny_model_config

PROMPTS = random_prompts((60, 33, 7, 1))
SPECULATION = SpeculationConfig(k=4, min_budget=24, max_lookups=6)
RULES = {
    "default": SPECULATION,
    "exact": replace(SPECULATION, score_normalizer="exact"),
    "paper": replace(SPECULATION, recent_share=0.0, moving_share=0.0, max_lookups=0),
    "last": replace(SPECULATION, moving_from="last"),
    "average": replace(SPECULATION, ranking="average"),
    "window": replace(SPECULATION, drafter="window"),
    "ngram": replace(SPECULATION, drafter="ngram"),
    "none": replace(SPECULATION, drafter="none"),
}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    """Runs instead of whatever would be chosen."""
    made = FakeLibrary()
    monkeypatch.setattr(torch_executor, "choose_attention", lambda *_: PluginAttention(made))
    return made


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_every_input_is_in_its_place(family: str, rule: str, library: FakeLibrary) -> None:
    """Token for token and draft for draft what the references give, requests that join and wait included."""
    model = tiny_model_config(family=family)  # type: ignore[arg-type]
    engine = tiny_engine(3, replace(BUILD, dtype="bfloat16"), model)
    outputs = LLM(engine, RULES[rule]).generate(PROMPTS, greedy(40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_executor, "choose_attention", choose_attention)
        expected = LLM(engine, RULES[rule], RuntimeConfig(attention="reference")).generate(PROMPTS, greedy(40))
    assert first_answers(outputs) == first_answers(expected)
    assert DraftCounts.of(outputs) == DraftCounts.of(expected)
    # One plan for both layers; none of them runs in a step without rows.
    assert 0 < library.runs.count("PillarAttention") <= 2 * library.runs.count("PillarPlan")
    assert (library.runs.count("PillarSelect") > 0) == (RULES[rule].drafter == "pillar")


def test_fields(library: FakeLibrary) -> None:
    """Each plugin is made once."""
    model = replace(tiny_model_config(family="qwen3"), rms_norm_eps=3e-5)
    LLM(tiny_engine(3, BUILD, model), SPECULATION).generate(PROMPTS, greedy(20))
    assert library.created == [
        ("PillarSelect", {}),
        ("PillarPlan", {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}),
        (
            "PillarAttention",
            {
                "num_heads": 4,
                "num_kv_heads": 2,
                "head_dim": 16,
                "page_size": 8,
                "rms_norm_eps": 3e-5,
                "qk_norm": 1,
                "score_planes": "diagonal",
                "score_normalizer": "draft",
            },
        ),
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


def test_more_slots_than_a_plan_has_room_for() -> None:
    with pytest.raises(InputError, match="expected max_batch_size of at most 1024, found 1025"):
        chosen("plugins", SERVED, SPECULATION, "cuda", max_batch_size=1025)


@pytest.mark.parametrize("choice", ["auto", "plugins"])
def test_a_missing_library_is_told(choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow attention on a GPU is for those who ask for it."""
    monkeypatch.setenv(PLUGIN_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match=r"libsparsespec_plugins.so.*; --attention reference works everywhere"):
        chosen(choice, SERVED, SPECULATION, "cuda")
