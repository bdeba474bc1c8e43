"""CUDA graphs of whole steps: how many there are, what is in them, and that the host waits for none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsespec.builder.model_config import ModelConfig
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device.graph_executor import GraphExecutor
from sparsespec.runtime.llm import LLM
from throughput_study.engines import QWEN3_8B, random_engine
from throughput_study.experiments import greedy, limits
from throughput_study.texts import random_prompts
from throughput_study.timeline import record, summarise
from throughput_study.windows import Load

pytestmark = pytest.mark.gpu

SMOLLM2_135M = replace(
    QWEN3_8B,
    family="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    tie_word_embeddings=True,
    eos_token_ids=(2,),
)
QWEN3 = replace(QWEN3_8B, vocab_size=32000, eos_token_ids=(2,))
PLAIN = SpeculationConfig(drafter="none")
PILLAR = SpeculationConfig(min_budget=64)
BATCH, PROMPT = 64, 300


def steady(model: ModelConfig, speculation: SpeculationConfig) -> Load:
    """Requests that all decode."""
    engine = random_engine(model, limits(BATCH, 1000), torch.device("cuda"))
    load = Load(LLM(engine, speculation), random_prompts(model.vocab_size, BATCH, PROMPT), greedy(600))
    load.warm_up()
    return load


@pytest.mark.parametrize("model", [SMOLLM2_135M, QWEN3], ids=["smollm2", "qwen3"])
@pytest.mark.parametrize("speculation", [PLAIN, PILLAR], ids=["plain", "pillar"])
def test_at_most_ten_kernels_a_layer(
    model: ModelConfig, speculation: SpeculationConfig, record_property: pytest.FixtureRequest
) -> None:
    """Two numbers of layers, so that what a step has once does not count; what a product is split into does."""
    few, many = 2, 6
    counts = [
        summarise(record(steady(replace(model, num_layers=layers), speculation).step, 18)).kernels_per_step
        for layers in (few, many)
    ]
    per_layer = (counts[1] - counts[0]) / (many - few)
    record_property("kernels a layer", per_layer)  # type: ignore[operator]
    assert per_layer <= 10
    assert counts[0] - few * per_layer <= 12


def test_only_the_shapes_that_came_up_are_captured() -> None:
    load = steady(replace(SMOLLM2_135M, num_layers=2), PLAIN)
    executor = load.llm.executor
    assert isinstance(executor, GraphExecutor)
    captured = executor.graphs.captured
    decoding = [shape for shape in captured if shape.every_row]
    assert [shape.num_rows for shape in decoding] == [BATCH]
    assert all(each.num_bytes >= 0 for each in captured.values())
    load.measure(20)
    assert list(executor.graphs.captured) == list(captured)


def test_steps_are_started_while_the_gpu_is_busy() -> None:
    """Work that takes the GPU much longer than the host takes for three steps is not over when they are started."""
    load = steady(replace(SMOLLM2_135M, num_layers=2), PILLAR)
    llm = load.llm
    llm.config = RuntimeConfig(result_lag=8)
    load.measure(18)
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)
    done = torch.cuda.Event()
    done.record()
    for _ in range(3):
        load.step()
    assert not done.query()
