"""The session on a GPU, in CUDA graphs: engines that run the torch lowering with the real plugins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fake_tensorrt import BUILT, FakeTensorRT, Faults, fake_engines
from sparsespec.builder.errors import BackendError
from sparsespec.plugins.library import plugin_host_path, plugin_library_path
from sparsespec.plugins.plugin_host import PluginLibrary
from sparsespec.runtime import llm as llm_module
from sparsespec.runtime.config import Policy, RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device.plugin_ops import PluginAttention
from sparsespec.runtime.device.step_batch import StepBatch
from sparsespec.runtime.device.tensorrt_executor import TensorRTExecutor
from sparsespec.runtime.device.torch_executor import TorchExecutor
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from tiny_llm import BUILD, DraftCounts, first_answers, greedy, random_prompts, tiny_engine
from tiny_models import tiny_model_config

pytestmark = pytest.mark.gpu

SPECULATION = SpeculationConfig(k=4, ratio=0.2, min_budget=24)
PROMPTS = random_prompts((150, 61, 97, 33, 120, 80))


class Watched(TensorRTExecutor):
    """Compares every step's logits with the torch executor's, over the same memory: the network may run twice."""

    errors: list[float]
    steps: list[int]
    graphs: list[int]

    def execute(self, batch: StepBatch) -> Tensor:
        found = super().execute(batch).clone()
        expected = TorchExecutor.execute(self, batch)
        if len(expected):
            error = (found - expected).float().abs().max() / expected.float().abs().max()
            type(self).errors.append(float(error))
        type(self).steps.append(len(batch.inputs.token_ids))
        type(self).graphs.append(self._session.num_graphs)
        return found


def gpu_engine(
    directory: Path, device: str = "cuda:0", faults: Faults | None = None
) -> tuple[LoadedEngine, FakeTensorRT]:
    model = tiny_model_config(num_heads=4, num_kv_heads=2, head_dim=64, hidden_size=256)
    build = replace(BUILD, dtype="bfloat16", max_batch_size=6, page_size=16, max_num_tokens=192)
    engine = tiny_engine(build=build, model=model)
    weights = {name: tensor.to(device) for name, tensor in engine.weights.items()}
    config = replace(engine.config, tensorrt=BUILT)
    plugins = PluginAttention(PluginLibrary(plugin_library_path(), plugin_host_path()))
    trt = FakeTensorRT(config, device=device, attention=plugins, faults=faults or Faults())
    return replace(engine, config=config, weights=weights, engines=fake_engines(directory, trt)), trt


@pytest.mark.parametrize("policy", ["unified", "lockstep"])
def test_graphs_of_both_engines_give_the_torch_executors_logits(
    tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch, record_property: pytest.RecordProperty
) -> None:
    """bf16: a bucket's padding may round a matrix product otherwise, by about one part in 128 of the largest logit."""
    Watched.errors, Watched.steps, Watched.graphs = [], [], []
    monkeypatch.setattr(llm_module, "TensorRTExecutor", Watched)
    engine, trt = gpu_engine(tmp_path)
    llm = LLM(engine, SPECULATION, RuntimeConfig(device="cuda", chunk_size=96, policy=policy))
    outputs = llm.generate(PROMPTS, greedy(48))
    torch.cuda.synchronize()
    counts = DraftCounts.of(outputs)
    assert counts.accepted > 0
    assert counts.rejected > 0
    assert max(Watched.errors) < 0.02
    record_property("logits of graphs against the torch executor's, relative", max(Watched.errors))
    num_graphs = Watched.graphs[-1]
    print(f"{len(Watched.steps)} steps, {num_graphs} graphs, {len(trt.runs)} enqueues")
    assert num_graphs > 1
    # Every graph is captured once, after one step without it; the rest are replays, which no context sees.
    assert len(trt.runs) < len(Watched.steps)
    assert sorted({kind for kind, _, _ in trt.runs}) == ["draft", "verify"]


def test_tokens_are_the_torch_executors_but_for_near_ties(tmp_path: Path) -> None:
    engine, _ = gpu_engine(tmp_path)
    config = RuntimeConfig(device="cuda", chunk_size=96)
    found = first_answers(LLM(engine, SPECULATION, config).generate(PROMPTS, greedy(48)))
    plain = replace(engine, engines=None)
    expected = first_answers(LLM(plain, SPECULATION, config).generate(PROMPTS, greedy(48)))
    equal = sum(a == b for a, b in zip(found, expected, strict=True))
    print(f"{equal} of {len(found)} answers are equal")
    assert equal >= len(found) // 2  # a near-tie changes all that follows; the test above looks at logits


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_a_device_that_is_not_the_current_one(tmp_path: Path) -> None:
    engine, trt = gpu_engine(tmp_path, "cuda:1")
    torch.cuda.set_device(0)
    config = RuntimeConfig(device="cuda:1", chunk_size=96)
    found = first_answers(LLM(engine, SPECULATION, config).generate(PROMPTS, greedy(48)))
    other, _ = gpu_engine(tmp_path, "cuda:0")
    config = RuntimeConfig(device="cuda:0", chunk_size=96)
    assert found == first_answers(LLM(other, SPECULATION, config).generate(PROMPTS, greedy(48)))
    assert {*trt.current_devices} == {1}
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("failing_step", [3, 4])
def test_a_step_that_fails_while_it_is_captured_leaves_the_gpu_usable(tmp_path: Path, failing_step: int) -> None:
    """Steps 0 to 2 are prompts; step 3 runs before it is captured, as step 4."""
    engine, _ = gpu_engine(tmp_path, faults=Faults(failing_step=failing_step))
    config = RuntimeConfig(device="cuda", chunk_size=192)
    stream = torch.cuda.current_stream()
    with pytest.raises(BackendError, match=r"engine: TensorRT refused a step of \d+ rows.*: launch failure"):
        LLM(engine, SPECULATION, config).generate(PROMPTS, greedy(8))
    assert torch.cuda.current_stream() == stream
    torch.cuda.synchronize()
    healthy, _ = gpu_engine(tmp_path)
    assert LLM(healthy, SPECULATION, config).generate(PROMPTS, greedy(8))
