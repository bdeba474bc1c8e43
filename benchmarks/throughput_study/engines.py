"""Engines in memory for what is measured: a model's geometry with random weights, or an engine directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.fused_weights import fused_specs
from sparsespec.builder.model_config import ModelConfig
from sparsespec.runtime.config import RuntimeConfig
from sparsespec.runtime.loading import LoadedEngine, load_engine
from sparsespec.runtime.text import TextCodec

QWEN3_8B = ModelConfig(
    family="qwen3",
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=12288,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    max_position_embeddings=40960,
    tie_word_embeddings=False,
    eos_token_ids=(151645,),
)

# So that hidden states neither vanish nor overflow through a few dozen layers.
_WEIGHT_STD = 0.02


def random_engine(model: ModelConfig, build: BuildConfig, device: torch.device, seed: int = 0) -> LoadedEngine:
    """Weights from a normal distribution, norms of 1; tokens have no text."""
    generator = torch.Generator(device).manual_seed(seed)
    weights = {
        name: torch.ones(spec.shape, dtype=torch.bfloat16, device=device)
        if len(spec.shape) == 1
        else torch.empty(spec.shape, dtype=torch.bfloat16, device=device).normal_(std=_WEIGHT_STD, generator=generator)
        for name, spec in fused_specs(model, "bfloat16").items()
    }
    wordless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")))
    return LoadedEngine(EngineConfig(model, build), weights, TextCodec(wordless))


def real_engine(engine_dir: Path, build: BuildConfig) -> LoadedEngine:
    """An engine directory with other limits than it was built for; its type stays. EngineError, InputError."""
    loaded = load_engine(engine_dir, RuntimeConfig(device="cuda", backend="torch"))
    sizes = replace(build, dtype=loaded.config.build.dtype)
    return replace(loaded, config=replace(loaded.config, build=sizes))
