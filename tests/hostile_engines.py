"""A small intact directory with TensorRT's engines, and a TensorRT that runs those, whatever else it is given."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import bfloat16

from fake_builder import BuildingTensorRT
from fake_tensorrt import BUILT, FakeEngine, FakeRuntime
from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import ENGINE_FILES, LAYER_FILES, EngineConfig, write_engine
from sparsespec.builder.trt import availability
from sparsespec.builder.trt.availability import Gpu
from tiny_models import random_weights, save_tiny_tokenizer, tiny_model_config

BUILD = BuildConfig(dtype="bfloat16", max_batch_size=2, max_seq_len=64, max_draft_len=4, max_budget=192)
# The plugins want a head_dim that kernels have.
MODEL = tiny_model_config(num_layers=1, hidden_size=8, num_heads=1, num_kv_heads=1, head_dim=64, quantization="fp8")
CONFIG = EngineConfig(MODEL, BUILD, BUILT)


def write_tensorrt_engine(directory: Path) -> Path:
    """FP8 weights and both engines, as HostileTensorRT takes them. Returns `directory`."""

    def write_others(target: Path) -> None:
        save_tiny_tokenizer(target, MODEL.vocab_size)
        for kind, name in ENGINE_FILES.items():
            (target / name).write_bytes(kind.encode())
            (target / LAYER_FILES[kind]).write_text("{}")

    write_engine(directory, CONFIG, random_weights(MODEL, bfloat16, seed=0).items(), write_others, force=False)
    return directory


class HostileTensorRT(BuildingTensorRT):
    """Takes no damaged engine; that of CONFIG stays what it is, whatever config.json says by now."""

    def Runtime(self, logger: object) -> HostileRuntime:
        return HostileRuntime(self)


class HostileRuntime(FakeRuntime):
    """See HostileTensorRT."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
        if serialized_engine not in (b"draft", b"verify"):
            self.error_recorder.report_error("INTERNAL_ERROR", "the magic tag\n does not match")
            return None
        return super().deserialize_cuda_engine(serialized_engine)


def install_tensorrt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> HostileTensorRT:
    """TensorRT, the GPU that CONFIG is for, and a plugin library in `folder` are here, as far as anybody can see."""
    library = folder / "libsparsespec_plugins.so"
    library.write_bytes(b"")
    trt = HostileTensorRT(config=CONFIG)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)  # type: ignore[arg-type]
    monkeypatch.setattr(availability, "find_gpu", lambda _device: Gpu(BUILT.gpu, (9, 0)))
    monkeypatch.setattr(availability, "plugin_library_path", lambda: library)
    return trt
