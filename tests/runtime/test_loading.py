"""Engines from disk into memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsespec.builder.errors import EngineError, InputError
from sparsespec.runtime.config import RuntimeConfig
from sparsespec.runtime.loading import load_engine, resolve_device
from tiny_llm import BUILD
from tiny_models import tiny_model_config, write_tiny_engine


def test_engine_from_disk(tmp_path: Path) -> None:
    directory = write_tiny_engine(tmp_path / "engine", tiny_model_config(), BUILD, seed=0)
    engine = load_engine(directory, RuntimeConfig(device="cpu"))
    assert engine.config.model == tiny_model_config()
    assert engine.weights["embedding"].dtype == torch.float64
    assert engine.codec.decode(engine.codec.encode("one pillar")) == "one pillar"


def test_no_tokenizer(tmp_path: Path) -> None:
    directory = write_tiny_engine(tmp_path / "engine", tiny_model_config(), BUILD, seed=0)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match="tokenizer"):
        load_engine(directory, RuntimeConfig(device="cpu"))


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "cpu:x", "cuda:x", "cuda:", "", "mps"])
def test_unknown_device(device: str) -> None:
    with pytest.raises(InputError, match="device must be auto, cpu, cuda or cuda:N"):
        resolve_device(device)


def test_a_device_that_is_not_there() -> None:
    missing = f"cuda:{torch.cuda.device_count()}"
    for device in (missing, "cuda:" + "9" * 5000):
        with pytest.raises(InputError, match=f"'{device}'.* {torch.cuda.device_count()} CUDA devices"):
            resolve_device(device)
