from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import PreTrainedModel

from executor_driver import Driver, reference_logits, relative_error
from sparsespec.builder.checkpoint import open_checkpoint
from sparsespec.builder.fuse import fused_weights
from sparsespec.builder.model_config import Family, ModelConfig
from sparsespec.builder.rope import LinearScaling, Llama3Scaling, YarnScaling
from tiny_gguf import round_weights, write_tiny_gguf
from tiny_models import tiny_hf_model, tiny_model_config

# Norm of the difference over the norm of the reference, both in fp32.
LOGIT_TOLERANCE = 1e-5
PROMPT = [(7 * index * index + 3) % 125 + 3 for index in range(90)]

LLAMA3 = Llama3Scaling("llama3", 8.0, 1.0, 4.0, 32)
YARN = YarnScaling("yarn", 4.0, 32.0, 1.0, 2048, amplitude=1.1386294361119891)

MODELS = {
    "llama": tiny_model_config(),
    "llama, tied": tiny_model_config(tie_word_embeddings=True, hidden_size=48, num_heads=6, head_dim=24),
    "llama, linear": tiny_model_config(rope_scaling=LinearScaling("linear", 3.0)),
    "llama, llama3": tiny_model_config(rope_scaling=LLAMA3),
    "llama, yarn": tiny_model_config(rope_scaling=YARN),
    "qwen2": tiny_model_config(family="qwen2"),
    "qwen2, tied": tiny_model_config(family="qwen2", tie_word_embeddings=True, num_heads=4, num_kv_heads=1),
    "qwen2, linear": tiny_model_config(family="qwen2", rope_scaling=LinearScaling("linear", 3.0)),
    "qwen2, yarn": tiny_model_config(family="qwen2", rope_scaling=YARN),
    "qwen3": tiny_model_config(family="qwen3", hidden_size=48, head_dim=24),
    "qwen3, tied": tiny_model_config(family="qwen3", tie_word_embeddings=True, num_kv_heads=4),
    "qwen3, linear": tiny_model_config(family="qwen3", rope_scaling=LinearScaling("linear", 3.0)),
    "qwen3, yarn": tiny_model_config(family="qwen3", rope_scaling=YARN),
}

QUANTISED = {
    "F16": (Kind.F16,),
    "BF16": (Kind.BF16,),
    "Q4_0": (Kind.Q4_0,),
    "Q4_1": (Kind.Q4_1,),
    "Q5_0": (Kind.Q5_0,),
    "Q5_1": (Kind.Q5_1,),
    "Q8_0": (Kind.Q8_0,),
    "mixed": (Kind.Q8_0, Kind.F16, Kind.Q4_0, Kind.F32, Kind.Q5_1),
}


def error_of(path: Path, hf_model: PreTrainedModel) -> float:
    """From the file to the logits of every token of a prompt, in two chunks."""
    checkpoint = open_checkpoint(str(path))
    driver = Driver(checkpoint.model, dict(fused_weights(checkpoint, torch.float32)), "float32", [PROMPT])
    found = torch.cat([driver.prefill({0: count})[0] for count in (37, len(PROMPT) - 37)])
    return relative_error(found, reference_logits(hf_model, PROMPT))


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_logits_equal_transformers(model: ModelConfig, tmp_path: Path) -> None:
    hf_model = tiny_hf_model(model)
    assert error_of(write_tiny_gguf(tmp_path / "tiny.gguf", hf_model), hf_model) < LOGIT_TOLERANCE


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kinds", QUANTISED.values(), ids=list(QUANTISED))
def test_logits_of_quantised_weights(kinds: tuple[Kind, ...], family: Family, tmp_path: Path) -> None:
    """transformers runs what the stored blocks stand for."""
    hf_model = tiny_hf_model(tiny_model_config(family=family))
    path = write_tiny_gguf(tmp_path / "tiny.gguf", hf_model, kinds)
    as_published = reference_logits(hf_model, PROMPT)
    round_weights(hf_model, kinds)
    assert relative_error(reference_logits(hf_model, PROMPT), as_published) > 10 * LOGIT_TOLERANCE
    assert error_of(path, hf_model) < LOGIT_TOLERANCE
