from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsespec.builder import build_engine
from sparsespec.builder.checkpoint import open_checkpoint
from sparsespec.builder.checkpoint.tensorrt_llm import TensorRtLlmCheckpoint
from sparsespec.builder.engine_dir import load_weights, read_engine_config
from sparsespec.builder.fused_weights import fused_sources
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.rope import LinearScaling, Llama3Scaling, YarnScaling
from sparsespec.builder.tokenizer_files import load_tokenizer
from tiny_models import tiny_hf_model, tiny_model_config
from tiny_trtllm import edit_config, edit_rank, write_tiny_trtllm

LLAMA3 = Llama3Scaling("llama3", 8.0, 1.0, 4.0, 32)
YARN = YarnScaling("yarn", 4.0, 32.0, 1.0, 2048, amplitude=1.25)
# A vocabulary of 101 is padded for every number of ranks but one.
MODELS = {
    "llama, llama3": tiny_model_config(num_layers=3, vocab_size=101, rope_scaling=LLAMA3),
    "llama, tied": tiny_model_config(num_layers=3, tie_word_embeddings=True, num_kv_heads=4),
    "llama, linear, wide heads": tiny_model_config(
        num_layers=3, head_dim=24, rope_scaling=LinearScaling("linear", 2.0)
    ),
    "qwen2": tiny_model_config(family="qwen2", num_layers=3, num_heads=8, num_kv_heads=4, head_dim=8),
    "qwen2, tied, one KV head": tiny_model_config(
        family="qwen2", num_layers=3, num_kv_heads=1, tie_word_embeddings=True, vocab_size=101
    ),
    "qwen3, yarn": tiny_model_config(family="qwen3", num_layers=3, vocab_size=101, rope_scaling=YARN),
    "qwen3, tied": tiny_model_config(family="qwen3", num_layers=3, num_heads=8, tie_word_embeddings=True),
}
LAYOUTS: dict[str, dict[str, int]] = {
    "1 rank": {},
    "2 ranks": {"tp_size": 2},
    "4 ranks": {"tp_size": 4},
    "2 ranks, shared hidden": {"tp_size": 2, "embedding_sharding_dim": 1},
    "4 ranks, shared vocabulary": {"tp_size": 4, "embedding_sharding_dim": 0},
    "2 stages": {"pp_size": 2},
    "3 stages of 2 ranks": {"tp_size": 2, "pp_size": 3},
}
MODEL = tiny_model_config(num_layers=3, vocab_size=101)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A llama over four ranks, of which two and two share a KV head."""
    return write_tiny_trtllm(tmp_path / "trtllm", tiny_hf_model(MODEL), tp_size=4)


def check_tensors(directory: Path, model: ModelConfig, expected: dict[str, Tensor]) -> None:
    """Every tensor that an engine is made of, bit for bit."""
    checkpoint = open_checkpoint(str(directory))
    assert isinstance(checkpoint, TensorRtLlmCheckpoint)
    assert checkpoint.model == model
    for sources in fused_sources(model).values():
        for name, shape in sources.items():
            assert torch.equal(checkpoint.tensor(name, shape), expected[name]), name


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_ranks_are_joined(model: ModelConfig, layout: dict[str, int], tmp_path: Path) -> None:
    hf_model = tiny_hf_model(model)
    check_tensors(write_tiny_trtllm(tmp_path / "trtllm", hf_model, **layout), model, hf_model.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    hf_model = tiny_hf_model(MODEL).to(dtype)
    directory = write_tiny_trtllm(tmp_path / "trtllm", hf_model, tp_size=2)
    check_tensors(directory, MODEL, hf_model.state_dict())
    assert open_checkpoint(str(directory)).dtype == str(dtype).removeprefix("torch.")


def test_engine_from_two_ranks(tmp_path: Path) -> None:
    hf_model = tiny_hf_model(MODEL)
    source = write_tiny_trtllm(tmp_path / "trtllm", hf_model, tp_size=2)
    engine = tmp_path / "engine"
    assert build_engine.main(["--checkpoint_dir", str(source), "--output_dir", str(engine)]) == 0
    config = read_engine_config(engine)
    assert (config.model, config.build.dtype, config.build.tp_size) == (MODEL, "float32", 1)
    assert torch.equal(load_weights(engine, config, "cpu")["lm_head"], hf_model.state_dict()["lm_head.weight"])
    assert load_tokenizer(engine).eos_token_id == 0


def test_embedding_stored_once(tmp_path: Path) -> None:
    """Older versions could leave the output projection away."""
    model = tiny_model_config(tie_word_embeddings=True)
    hf_model = tiny_hf_model(model)
    for said in ({"tie_word_embeddings": None, "share_embedding_table": True}, {"tie_word_embeddings": None}, {}):
        directory = write_tiny_trtllm(tmp_path / str(len(said)), hf_model)
        edit_config(directory, **said)
        edit_rank(directory, 0, lambda tensors: tensors.pop("lm_head.weight"))
        check_tensors(directory, model, hf_model.state_dict())


def test_nothing_said_of_tied_embeddings(directory: Path) -> None:
    edit_config(directory, tie_word_embeddings=None)
    assert open_checkpoint(str(directory)).model == MODEL


def test_older_name_of_every_qwen(tmp_path: Path) -> None:
    model = tiny_model_config(family="qwen2")
    hf_model = tiny_hf_model(model)
    directory = write_tiny_trtllm(tmp_path / "trtllm", hf_model, tp_size=2)
    edit_config(directory, architecture="QWenForCausalLM")
    check_tensors(directory, model, hf_model.state_dict())


def test_defaults(tmp_path: Path) -> None:
    """The keys that TensorRT-LLM's documentation calls mandatory are enough for a model that has its defaults."""
    model = replace(tiny_model_config(num_kv_heads=4), intermediate_size=256)
    hf_model = tiny_hf_model(model)
    directory = write_tiny_trtllm(tmp_path / "trtllm", hf_model)
    config = json.loads((directory / "config.json").read_text())
    kept = ["architecture", "dtype", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"]
    kept += ["hidden_act", "max_position_embeddings", "position_embedding_type"]
    (directory / "config.json").write_text(json.dumps({key: config[key] for key in kept}))
    check_tensors(directory, model, hf_model.state_dict())


def test_context_parallel_ranks_share_a_file(directory: Path) -> None:
    edit_config(directory, mapping={"world_size": 8, "tp_size": 4, "pp_size": 1, "cp_size": 2})
    assert open_checkpoint(str(directory)).model == MODEL


def test_generation_config_says_more_than_the_tokenizer(directory: Path) -> None:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 5]}))
    assert open_checkpoint(str(directory)).model.eos_token_ids == (7, 5)
