from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsespec.builder.checkpoint import open_checkpoint, opening
from sparsespec.builder.checkpoint.huggingface import HuggingFaceCheckpoint
from sparsespec.builder.checkpoint.tensorrt_llm import TensorRtLlmCheckpoint
from sparsespec.builder.errors import CheckpointError
from tiny_models import tiny_hf_model, tiny_model_config, write_tiny_hf_checkpoint
from tiny_trtllm import write_tiny_trtllm

MODEL = tiny_model_config()


def test_directory_with_foreign_keys_stays_hugging_face(tmp_path: Path) -> None:
    directory = write_tiny_hf_checkpoint(tmp_path / "hf", tiny_hf_model(MODEL))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"architecture": "decoder", "mapping": {}}))
    assert isinstance(open_checkpoint(str(directory)), HuggingFaceCheckpoint)


def test_hub_repository_may_hold_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_tiny_trtllm(tmp_path / "trtllm", tiny_hf_model(MODEL), tp_size=2)
    monkeypatch.setattr(opening, "snapshot_download", lambda *_, **__: str(directory))
    checkpoint = open_checkpoint("org/model")
    assert isinstance(checkpoint, TensorRtLlmCheckpoint)
    assert checkpoint.model == MODEL


def test_built_tensorrt_llm_engine(tmp_path: Path) -> None:
    engine = {"version": "1.0.0", "pretrained_config": {"architecture": "LlamaForCausalLM"}, "build_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(engine))
    with pytest.raises(CheckpointError, match=r"config\.json: a built TensorRT-LLM engine; expected the checkpoint"):
        open_checkpoint(str(tmp_path))


def test_directory_that_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json: model_type: expected"):
        open_checkpoint(str(tmp_path))
