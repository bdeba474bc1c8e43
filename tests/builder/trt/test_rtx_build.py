"""Both engines by a real TensorRT builder, on the CPU: TensorRT for RTX's, with native layers where plugins belong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from build_on_rtx import BuiltEngine, build_on_rtx
from fake_tensorrt import BUILT, FakeTensorRT, fake_engines
from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.fused_weights import fused_specs
from sparsespec.builder.model_config import Family, ModelConfig
from sparsespec.builder.trt.engine_io import EngineKind
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.tensorrt_executor import TensorRTExecutor
from sparsespec.runtime.trt import session
from sparsespec.runtime.trt.context import Bindings

pytestmark = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None, reason="needs the package tensorrt-rtx-cu13-bindings"
)

BUILD = BuildConfig(dtype="bfloat16", max_batch_size=4, max_seq_len=1024, max_num_tokens=512, max_budget=256)
SMOLLM2 = ModelConfig(
    family="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    eos_token_ids=(2,),
)
Record = Callable[[str, object], None]
TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "FP8": torch.float8_e4m3fn,
    "INT32": torch.int32,
    "INT64": torch.int64,
}


def two_layers(family: Family) -> ModelConfig:
    return replace(SMOLLM2, family=family, num_layers=2, vocab_size=1000, tie_word_embeddings=family == "qwen2")


def session_bindings(
    model: ModelConfig, build: BuildConfig, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Bindings:
    """What the session binds, the same for both engines."""
    found: list[Bindings] = []

    def watched(**parts: object) -> Bindings:
        found.append(Bindings(**parts))  # type: ignore[arg-type]
        return found[0]

    monkeypatch.setattr(session, "Bindings", watched)
    types = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn, "float32": torch.float32}
    weights = {
        name: torch.zeros(spec.shape, dtype=types[spec.dtype]) for name, spec in fused_specs(model, build.dtype).items()
    }
    trt = FakeTensorRT(EngineConfig(model, build, BUILT))
    TensorRTExecutor(
        trt.config, weights, SpeculationConfig(), ExecutorConfig(3, num_pages=70), fake_engines(directory, trt)
    )
    return found[0]


def check_bindings_fit(built: BuiltEngine, bindings: Bindings) -> None:
    """Every input of the real network gets a tensor of its type, and of a shape that each profile has."""
    for tensor in built.inputs:
        bound = bindings.tensors[tensor.name]
        assert bound.dtype == TYPES[tensor.dtype], tensor.name
        assert bound.dim() == len(tensor.shape), tensor.name
        fixed = [(size, given) for size, given in zip(bound.shape, tensor.shape, strict=True) if given != -1]
        assert all(size == given for size, given in fixed), tensor.name
        if tensor.name in ("token_ids", "logit_rows"):
            continue  # a step takes the first rows of those
        for profile in built.profiles:
            least, _, most = profile.get(tensor.name, [list(tensor.shape)] * 3)
            assert all(low <= size <= high for low, size, high in zip(least, bound.shape, most, strict=True)), tensor
    for tensor in built.outputs:
        bound = bindings.tensors[tensor.name.removesuffix(".updated")]
        assert bound.dtype == TYPES[tensor.dtype], tensor.name


def check_everything_is_bound(built: BuiltEngine, bindings: Bindings, kind: EngineKind) -> None:
    verify_only = [] if kind == "verify" else ["logit_rows", "score_index"]
    names = [tensor.name for tensor in built.inputs]
    expected = [name for name in bindings.tensors if name != "logits" and name not in verify_only]
    if kind == "draft":
        expected = [name for name in expected if not name.endswith(".scores")]
    assert sorted(names) == sorted(expected)
    updated = [tensor.name for tensor in built.outputs if tensor.name != "logits"]
    mutable = ("kv_pool", "draft_lse", "scores")
    assert sorted(updated) == sorted(f"{name}.updated" for name in names if name.rpartition(".")[2] in mutable)


@pytest.mark.parametrize("kind", ["draft", "verify"])
@pytest.mark.parametrize("model", ["llama", "qwen2", "qwen3", pytest.param("SmolLM2-135M", marks=pytest.mark.slow)])
def test_a_real_builder_takes_what_the_session_binds(
    model: str, kind: EngineKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    config = SMOLLM2 if model == "SmolLM2-135M" else two_layers(model)  # type: ignore[arg-type]
    built = build_on_rtx(config, BUILD, kind)
    print(f"{model} {kind}.engine: {len(built.inputs)} inputs, {len(built.profiles)} profiles")
    record_property(f"{model} {kind}.engine, MB", built.num_bytes / 1e6)
    record_property(f"{model} {kind}.engine, seconds to build", built.seconds)
    assert len(built.profiles) == (1 if kind == "draft" else 2)
    assert len(built.phases) > 0
    bindings = session_bindings(config, BUILD, tmp_path, monkeypatch)
    check_bindings_fit(built, bindings)
    check_everything_is_bound(built, bindings, kind)


def test_profiles_come_from_the_build_config() -> None:
    """Rows, logits, slots, pages, drafts and lookups; by hand."""
    built = build_on_rtx(two_layers("llama"), BUILD, "verify")
    decoding, prompts = built.profiles
    assert decoding["token_ids"] == [[1], [8], [68]]  # 4 requests of 16 drafts and one more row
    assert prompts["token_ids"] == [[1], [512], [512]]
    assert decoding["logit_rows"] == [[1], [8], [68]]
    assert prompts["logit_rows"] == [[1], [68], [68]]
    assert decoding["row_start"] == [[2], [5], [5]]
    assert decoding["kv_len"] == [[1], [4], [4]]
    assert decoding["page_table"] == [[1, 66], [4, 66], [4, 66]]  # 1024 + 17 positions in pages of 16
    assert decoding["lookups"] == [[1, 1], [4, 16], [4, 256]]
    assert decoding["layers.0.kv_pool"] == [[1, 2, 3, 16, 64], [264, 2, 3, 16, 64], [264, 2, 3, 16, 64]]
    assert decoding["layers.1.draft_lse"] == [[1, 1, 9], [4, 8, 9], [4, 16, 9]]
    # 1041 positions, rounded up to whole 256 bytes of float16.
    assert decoding["layers.1.scores"] == [[1, 2, 3, 1152], [4, 2, 3, 1152], [4, 2, 3, 1152]]
    assert sorted(decoding) == sorted(prompts)
