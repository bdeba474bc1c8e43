from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsespec.builder.build_config import BuildConfig, DType
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.errors import InputError
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device import torch_executor
from sparsespec.runtime.device.drafter import make_drafter
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.torch_executor import make_memory
from tiny_models import tiny_model_config

ENGINE = EngineConfig(
    tiny_model_config(),
    BuildConfig(dtype="float32", max_batch_size=2, max_seq_len=64, max_num_tokens=64, max_draft_len=4, max_budget=64),
)
LIMITS = ExecutorConfig(max_batch_size=2, num_pages=8)


@pytest.mark.parametrize("part", ["make_slot_state", "rope_table"])
def test_no_memory_is_told_in_a_line(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(torch_executor, part, fail)
    with pytest.raises(InputError, match=r"no memory on cpu for 2 slots and a KV cache of .*lower max_batch_size"):
        make_memory(ENGINE, make_drafter(SpeculationConfig(k=4, min_budget=8)), LIMITS, torch.device("cpu"))


@pytest.mark.parametrize(
    ("speculation", "planes", "lookups"),
    [
        (SpeculationConfig(k=4), 2, 16),
        (SpeculationConfig(k=4, moving_from="last"), 5, 16),
        (SpeculationConfig(k=4, moving_share=0.0, max_lookups=0), 1, 0),
        (SpeculationConfig(k=4, drafter="window"), 0, 0),
        (SpeculationConfig(k=4, drafter="oracle"), 0, 0),
        (SpeculationConfig(k=4, drafter="ngram"), 0, 0),
        (SpeculationConfig(drafter="none"), 0, 0),
    ],
)
def test_a_drafter_gets_the_memory_that_it_needs(speculation: SpeculationConfig, planes: int, lookups: int) -> None:
    memory = make_memory(ENGINE, make_drafter(speculation), LIMITS, torch.device("cpu"))
    assert memory.scores.shape[1:3] == (2 if planes else 0, planes)
    assert memory.state.lookups.shape == (2, max(1, lookups))
    assert memory.state.draft_lse.shape == (2, 2, max(1, speculation.draft_len), 4)
    assert memory.state.score_history.numel() == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("budget", "seq_len"), [(64, 64), (65, 99), (1, 1)])
def test_every_layers_memory_begins_where_tensorrt_takes_an_address(dtype: DType, budget: int, seq_len: int) -> None:
    """At whole 256 bytes after the layer before, whatever the sizes; the whole is as PillarSelect wants it."""
    build = replace(ENGINE.build, dtype=dtype, max_budget=budget, max_seq_len=seq_len, max_batch_size=3, page_size=16)
    model = tiny_model_config(num_heads=3, num_kv_heads=3, head_dim=64, num_layers=3)
    speculation = SpeculationConfig(k=3, min_budget=1, ratio=0.01)
    limits = ExecutorConfig(max_batch_size=3, num_pages=5)
    memory = make_memory(EngineConfig(model, build), make_drafter(speculation), limits, torch.device("cpu"))
    for tensor in (memory.kv_pool, memory.state.draft_lse, memory.state.pillars, memory.scores):
        assert tensor.stride(0) * tensor.element_size() % 256 == 0
        assert all(layer.is_contiguous() for layer in tensor)
    assert memory.state.pillars.is_contiguous()
    assert memory.scores.is_contiguous()
