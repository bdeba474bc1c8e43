"""CUDA graphs of whole steps: how many there are, what is in them, and that the host waits for none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sparsespec.builder.model_config import ModelConfig
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device.graph_executor import GraphExecutor
from sparsespec.runtime.llm import LLM
from throughput_study.engines import QWEN3_8B, random_engine
from throughput_study.settings import greedy, limits
from throughput_study.texts import random_prompts
from throughput_study.timeline import record
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

Record = Callable[[str, object], None]


def steady(model: ModelConfig, speculation: SpeculationConfig, batch: int = BATCH, result_lag: int = 1) -> Load:
    """Requests that all decode."""
    engine = random_engine(model, limits(batch, 1000, 4096), torch.device("cuda"))
    llm = LLM(engine, speculation, RuntimeConfig(chunk_size=4096, result_lag=result_lag))
    load = Load(llm, random_prompts(model.vocab_size, batch, PROMPT), greedy(600))
    load.warm_up()
    return load


@pytest.mark.parametrize("speculation", [PLAIN, PILLAR], ids=["plain", "pillar"])
@pytest.mark.parametrize(
    ("model", "batch"),
    [(SMOLLM2_135M, 512), (SMOLLM2_135M, 1), (QWEN3, 96), (QWEN3, 8)],
    ids=["smollm2-512", "smollm2-1", "qwen3-96", "qwen3-8"],
)
def test_at_most_ten_kernels_a_layer(
    model: ModelConfig, batch: int, speculation: SpeculationConfig, record_property: Record
) -> None:
    """Two numbers of layers, so that what a step has once does not count; all that cuBLAS launches does."""
    few, many = (_steady_kernels(replace(model, num_layers=layers), speculation, batch) for layers in (2, 6))
    per_layer = (len(many) - len(few)) / 4
    record_property("kernels a layer", per_layer)
    record_property("kernels of a step besides", len(few) - 2 * per_layer)
    assert per_layer <= 10
    assert len(few) - 2 * per_layer <= 10


def _steady_kernels(model: ModelConfig, speculation: SpeculationConfig, batch: int) -> list[str]:
    """Names of the kernels of one step."""
    runs = record(steady(model, speculation, batch).step, 4)
    starts = [index for index, run in enumerate(runs) if "step_rows" in run.name]
    return [run.name for run in runs[starts[1] : starts[2]]]


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
    load = steady(replace(SMOLLM2_135M, num_layers=2), PILLAR, result_lag=8)
    load.measure(18)
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)
    done = torch.cuda.Event()
    done.record()
    for _ in range(3):
        load.step()
    assert not done.query()
