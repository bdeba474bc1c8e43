"""The torch executor with the project's plugins, in the types that GPUs serve with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bf16_equality import measure
from sparsespec.builder.build_config import DType, KvCacheDType
from sparsespec.builder.model_config import Family, Quantization
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device.graph_executor import GraphExecutor
from sparsespec.runtime.device.step_batch import StepBatch
from sparsespec.runtime.device.torch_executor import TorchExecutor
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.outputs import RequestOutput
from sparsespec.runtime.sampling_params import SamplingParams
from tiny_llm import (
    BUILD,
    DraftCounts,
    assert_all_pages_free,
    first_answers,
    greedy,
    random_prompts,
    tiny_engine,
    ways_to_draft,
)
from tiny_models import tiny_model_config

pytestmark = pytest.mark.gpu

PLUGINS = RuntimeConfig(attention="plugins")
PROMPTS = random_prompts((60, 97, 7, 33, 1))
BUDGET = 24
SPECULATION = SpeculationConfig(k=4, min_budget=BUDGET)
RULES = ways_to_draft(SPECULATION) | {"k of 16": replace(SPECULATION, k=16)}


def on_gpu(
    dtype: DType,
    family: Family = "llama",
    device: str = "cuda",
    quantization: Quantization | None = None,
    kv_cache_dtype: KvCacheDType = "auto",
) -> LoadedEngine:
    """Three query heads for each of two KV heads of 64."""
    model = tiny_model_config(family=family, num_heads=6, num_kv_heads=2, head_dim=64, quantization=quantization)
    engine = tiny_engine(0, replace(BUILD, dtype=dtype, page_size=16, kv_cache_dtype=kv_cache_dtype), model)
    weights = {name: weight.to(device) for name, weight in engine.weights.items()}
    return LoadedEngine(engine.config, weights, engine.codec)


Record = Callable[[str, object], None]


def assert_plain_up_to_near_ties(engine: LoadedEngine, outputs: list[RequestOutput], record: Record) -> None:
    """And that the outputs say something: contexts beyond the budget, drafts accepted and rejected."""
    counts = DraftCounts.of(outputs)
    assert counts.longest_context > BUDGET
    assert counts.accepted > 0
    assert counts.rejected > 0
    found = measure(engine, outputs, PLUGINS)
    record("tiny models: eps in logits", found.eps)
    assert found.num_beyond == 0
    assert found.eps < 0.25  # or kernels whose result depends on the batch would excuse themselves


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rule", RULES)
def test_greedy_tokens_are_plain_decodings(rule: str, dtype: DType, record_property: Record) -> None:
    engine = on_gpu(dtype)
    llm = LLM(engine, RULES[rule], PLUGINS)
    assert_plain_up_to_near_ties(engine, llm.generate(PROMPTS, greedy(96)), record_property)
    assert_all_pages_free(llm)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_families(family: Family, record_property: Record) -> None:
    """Biases, and norms of queries and keys."""
    engine = on_gpu("bfloat16", family)
    assert_plain_up_to_near_ties(
        engine, LLM(engine, SPECULATION, PLUGINS).generate(PROMPTS, greedy(96)), record_property
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_fp8_weights(family: Family, record_property: Record) -> None:
    """Rounding of sums moves inputs over borders of FP8 numbers, so plain decoding differs more from itself."""
    engine = on_gpu("bfloat16", family, quantization="fp8")
    outputs = LLM(engine, SPECULATION, PLUGINS).generate(PROMPTS, greedy(96))
    counts = DraftCounts.of(outputs)
    assert counts.accepted > 0
    assert counts.rejected > 0
    found = measure(engine, outputs, PLUGINS)
    print(found)
    record_property("tiny models in FP8: eps in logits", found.eps)
    assert found.num_beyond == 0
    assert found.eps < 1


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_fp8_kv_cache(family: Family, record_property: Record) -> None:
    """As with FP8 weights: a key may move to the next number, in plain decoding too."""
    engine = on_gpu("bfloat16", family, kv_cache_dtype="fp8")
    outputs = LLM(engine, SPECULATION, PLUGINS).generate(PROMPTS, greedy(96))
    counts = DraftCounts.of(outputs)
    assert counts.longest_context > BUDGET
    assert counts.accepted > 0
    assert counts.rejected > 0
    found = measure(engine, outputs, PLUGINS)
    print(found)
    record_property("tiny models over an FP8 KV cache: eps in logits", found.eps)
    assert found.num_beyond == 0
    assert found.eps < 1


def test_lockstep_late_results_and_short_chunks(record_property: Record) -> None:
    engine = on_gpu("bfloat16")
    config = replace(PLUGINS, policy="lockstep", result_lag=3, chunk_size=7)
    assert_plain_up_to_near_ties(
        engine, LLM(engine, SPECULATION, config).generate(PROMPTS, greedy(96)), record_property
    )


def test_drafts_that_read_everything_are_accepted() -> None:
    """Then the draft model is the model; rounding may still reject a near-tie."""
    everything = replace(SPECULATION, min_budget=BUILD.max_budget, recent_share=1.0)
    outputs = LLM(on_gpu("bfloat16"), everything, PLUGINS).generate(PROMPTS, greedy(96))
    counts = DraftCounts.of(outputs)
    assert counts.accepted > 0
    checks = [check for output in outputs for check in output.outputs[0].verifications]
    assert counts.accepted > 0.95 * sum(check.num_drafts for check in checks)


def test_plugins_are_the_default_in_16_bits() -> None:
    """Same kernels, same steps, same bits."""
    engine = on_gpu("bfloat16")
    params = SamplingParams(max_tokens=40, temperature=0.8, top_p=0.9, seed=3, ignore_eos=True)
    chosen, default = (
        LLM(engine, SPECULATION, config).generate(PROMPTS, params) for config in (PLUGINS, RuntimeConfig())
    )
    assert first_answers(chosen) == first_answers(default)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_gpu_that_is_not_the_current_one() -> None:
    """Results are waited for at once: on the right device's stream. Graphs are captured there, and serve there."""
    config = replace(PLUGINS, result_lag=0)
    answers = []
    for device in ("cuda:0", "cuda:1"):
        llm = LLM(on_gpu("bfloat16", device=device), SPECULATION, config)
        answers.append([first_answers(llm.generate(PROMPTS, greedy(40))) for _ in range(2)])
        assert isinstance(llm.executor, GraphExecutor)
        assert llm.executor.graphs.captured
        assert torch.cuda.current_device() == 0
    assert answers[0] == answers[1]


def test_the_decoder_does_not_wait_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    execute = TorchExecutor.execute

    def watched(self: TorchExecutor, batch: StepBatch) -> Tensor:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return execute(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(TorchExecutor, "execute", watched)
    outputs = LLM(on_gpu("bfloat16"), SPECULATION, PLUGINS).generate(PROMPTS, greedy(20))
    assert [len(answer) for answer in first_answers(outputs)] == [20] * len(PROMPTS)
