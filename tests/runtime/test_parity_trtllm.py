from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from executor_driver import Driver, reference_logits, relative_error
from sparsespec.builder.checkpoint import open_checkpoint
from sparsespec.builder.fuse import fused_weights
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.rope import LinearScaling, Llama3Scaling, YarnScaling
from tiny_models import tiny_hf_model, tiny_model_config, write_tiny_hf_checkpoint
from tiny_trtllm import write_tiny_trtllm

# Norm of the difference over the norm of the reference, both in fp32.
LOGIT_TOLERANCE = 1e-5
PROMPT = [(7 * index * index + 3) % 98 + 3 for index in range(90)]

LLAMA3 = Llama3Scaling("llama3", 8.0, 1.0, 4.0, 32)
YARN = YarnScaling("yarn", 4.0, 32.0, 1.0, 2048, amplitude=1.25)
MODELS = {
    "llama": tiny_model_config(vocab_size=101),
    "llama, linear": tiny_model_config(rope_scaling=LinearScaling("linear", 3.0)),
    "llama, llama3, tied": tiny_model_config(rope_scaling=LLAMA3, tie_word_embeddings=True),
    "llama, llama3": tiny_model_config(rope_scaling=LLAMA3, num_heads=8, num_kv_heads=4, head_dim=8),
    "qwen2": tiny_model_config(family="qwen2", vocab_size=101),
    "qwen2, tied": tiny_model_config(family="qwen2", tie_word_embeddings=True, num_kv_heads=1),
    "qwen3, yarn": tiny_model_config(family="qwen3", rope_scaling=YARN, hidden_size=48, head_dim=24),
    "qwen3, yarn, tied": tiny_model_config(family="qwen3", rope_scaling=YARN, tie_word_embeddings=True),
}


def logits_of(directory: Path) -> Tensor:
    """From the files to the logits of every token of a prompt, in two chunks."""
    checkpoint = open_checkpoint(str(directory))
    driver = Driver(checkpoint.model, dict(fused_weights(checkpoint, torch.float32)), "float32", [PROMPT])
    return torch.cat([driver.prefill({0: count})[0] for count in (37, len(PROMPT) - 37)])


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_logits_equal_hugging_face(model: ModelConfig, tmp_path: Path) -> None:
    """Equal to those from the directory that the ranks were split from, and near transformers' own."""
    hf_model = tiny_hf_model(model)
    original = logits_of(write_tiny_hf_checkpoint(tmp_path / "hf", hf_model))
    for tp_size in (1, 2, 4):
        ranks = write_tiny_trtllm(tmp_path / str(tp_size), hf_model, tp_size=tp_size)
        assert torch.equal(logits_of(ranks), original)
    stages = write_tiny_trtllm(tmp_path / "stages", hf_model, tp_size=2, pp_size=2, embedding_sharding_dim=0)
    assert torch.equal(logits_of(stages), original)
    assert relative_error(original, reference_logits(hf_model, PROMPT)) < LOGIT_TOLERANCE
