"""TensorRT itself: builds both engines, runs them and compares with the torch executor. `make test-tensorrt`.

Needs the package tensorrt (10.3 to 11), a CUDA GPU of compute capability 8.0 or more, and the compiled plugins.
"""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter

import pytest
import torch

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.build_engine import BuildJob, build_engine
from sparsespec.builder.trt.config import TensorRTConfig
from sparsespec.runtime.config import BackendName, RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device.tensorrt_executor import TensorRTExecutor
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import RequestOutput
from tiny_llm import DraftCounts, first_answers, greedy, random_prompts
from tiny_models import tiny_hf_model, tiny_model_config, write_tiny_hf_checkpoint

pytestmark = [pytest.mark.tensorrt, pytest.mark.gpu]

SPECULATION = SpeculationConfig(k=4, ratio=0.2, min_budget=24)
PROMPTS = random_prompts((150, 61, 97, 33))
BUILD = BuildConfig(
    dtype="bfloat16", max_batch_size=4, max_seq_len=512, max_num_tokens=256, max_draft_len=8, max_budget=256
)


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def engine_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp(request.param)
    model = tiny_model_config(family=request.param, num_heads=4, num_kv_heads=2, head_dim=64, hidden_size=256)
    write_tiny_hf_checkpoint(folder / "checkpoint", tiny_hf_model(model).to(torch.bfloat16))
    job = BuildJob(str(folder / "checkpoint"), folder / "engine", backend="tensorrt")
    report = build_engine(
        job, BUILD, TensorRTConfig(timing_cache=folder / "timing.cache", profiling_verbosity="detailed")
    )
    print(report.to_json())
    return folder / "engine"


def load(engine_dir: Path, backend: BackendName) -> LLM:
    return LLM(engine_dir, SPECULATION, RuntimeConfig(device="cuda", backend=backend, chunk_size=96))


def timed(llm: LLM) -> tuple[list[RequestOutput], float]:
    """The second of two runs: the first captures graphs."""
    llm.generate(PROMPTS, greedy(64))
    start = perf_counter()
    outputs = llm.generate(PROMPTS, greedy(64))
    return outputs, perf_counter() - start


def test_both_engines_decode_as_the_torch_executor_does(engine_dir: Path) -> None:
    """bf16: near-ties may fall either way and change all that follows."""
    found, seconds = timed(load(engine_dir, "tensorrt"))
    expected, torch_seconds = timed(load(engine_dir, "torch"))
    equal = sum(a == b for a, b in zip(first_answers(found), first_answers(expected), strict=True))
    print(f"{equal} of {len(PROMPTS)} answers equal; {seconds:.3f} s against {torch_seconds:.3f} s by torch")
    assert equal >= len(PROMPTS) // 2
    counts = DraftCounts.of(found)
    assert counts.accepted > 0
    assert counts.rejected > 0


def test_the_kv_pool_is_updated_in_place(engine_dir: Path) -> None:
    """TensorRT has inserted no copy: a prompt's keys and values are where the runtime keeps them."""
    llm = load(engine_dir, "tensorrt")
    llm.add_request(PROMPTS[1], greedy(1))
    llm.step()
    torch.cuda.synchronize()
    executor = llm._executor
    assert isinstance(executor, TensorRTExecutor)
    pool, pages = executor.memory.kv_pool, executor.memory.state.page_table[0, : len(PROMPTS[1]) // BUILD.page_size]
    assert bool((pool[:, pages.long()].abs().amax(dim=-1) > 0).all())


def test_the_inspector_names_the_layers(engine_dir: Path) -> None:
    for name in ("draft.layers.json", "verify.layers.json"):
        layers = json.loads((engine_dir / name).read_text(encoding="utf-8"))["Layers"]
        assert sum("PillarAttention" in json.dumps(layer) for layer in layers) >= 2
