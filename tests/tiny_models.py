"""Tiny random models for tests: configs, fused weights, engine directories, Hugging Face checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sparsespec.builder.build_config import BuildConfig, KvCacheDType
from sparsespec.builder.engine_dir import TORCH_DTYPES, EngineConfig, write_engine
from sparsespec.builder.fused_weights import INPUT_SCALE, KV_SCALE, ROW_SCALE, WEIGHT_SCALE, fused_specs
from sparsespec.builder.model_config import Family, ModelConfig, Quantization
from sparsespec.builder.rope import RopeScaling

SPECIAL_TOKENS = ("<|eos|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_ASCII = (10, *range(32, 127))
# Bytes of multi-byte characters: enough for "é", "€" and "😀".
_OTHERS = (0xC3, 0xE2, 0xF0, *range(0x80, 0x95), 0x98, 0x9F, 0xA9, 0xAC)


def tiny_model_config(
    *,
    family: Family = "llama",
    num_layers: int = 2,
    hidden_size: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    vocab_size: int = 128,
    tie_word_embeddings: bool = False,
    eos_token_ids: tuple[int, ...] = (0,),
    rope_scaling: RopeScaling | None = None,
    quantization: Quantization | None = None,
) -> ModelConfig:
    """A model small enough that a forward pass over a few hundred tokens takes milliseconds."""
    return ModelConfig(
        family=family,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_position_embeddings=8192,
        tie_word_embeddings=tie_word_embeddings,
        eos_token_ids=eos_token_ids,
        rope_scaling=rope_scaling,
        quantization=quantization,
    )


def random_weights(
    model: ModelConfig, dtype: torch.dtype, seed: int, kv_cache_dtype: KvCacheDType = "auto"
) -> dict[str, torch.Tensor]:
    """Weights in the fused layout, scaled so that logits are neither flat nor one-hot; one seed gives one model.

    Scales of an FP8 KV cache are 1/64, 2/64 and so on: keys and values of such models are below 7.
    """
    generator = torch.Generator().manual_seed(seed)
    named = next(name for name, each in TORCH_DTYPES.items() if each == dtype)
    weights: dict[str, torch.Tensor] = {}
    specs = fused_specs(model, named, kv_cache_dtype)
    for name, spec in specs.items():
        if name in weights:
            continue  # a scale, made with its weight
        if name.endswith(KV_SCALE):
            weights[name] = (1 + torch.arange(spec.num_elements)).reshape(spec.shape) / 64
            continue
        weight = _scaled(name, torch.randn(spec.shape, generator=generator, dtype=torch.float64))
        if spec.dtype == "float8_e4m3fn":
            if f"{name}.{ROW_SCALE}" in specs:
                weights[f"{name}.{ROW_SCALE}"] = row_scale = row_scales(len(weight))
                weight = weight / row_scale[:, None]
            weights[name], weights[f"{name}.{WEIGHT_SCALE}"] = fp8_of(weight)
            weights[f"{name}.{INPUT_SCALE}"] = torch.tensor(1 / 64)  # of inputs up to 7
        else:
            weights[name] = weight.to(dtype)
    return weights


def fp8_of(weight: torch.Tensor, headroom: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight as float8_e4m3fn, and its scale: what the largest number needs, times headroom."""
    scale = (headroom * weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max).float()
    return (weight / scale).to(torch.float8_e4m3fn), scale


def row_scales(num_rows: int) -> torch.Tensor:
    """Of a product: 1, 2, 3 and so on in turn, [num_rows]."""
    return (1 + torch.arange(num_rows) % 3).float()


def tiny_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Three special tokens, one token per byte and a merged "th"; what `vocab_size` cuts off cannot be encoded."""
    names = _byte_names()
    order = [*_OTHERS, *(byte for byte in range(256) if byte not in (*_ASCII, *_OTHERS))]
    ascii_tokens = [names[byte] for byte in _ASCII]
    tokens = [*SPECIAL_TOKENS, *ascii_tokens, "th", *(names[byte] for byte in order)][:vocab_size]
    merges = [("t", "h")] if "th" in tokens else []
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eos|>", chat_template=CHAT_TEMPLATE)


def save_tiny_tokenizer(directory: Path, vocab_size: int = 128) -> None:
    tiny_tokenizer(vocab_size).save_pretrained(directory)


def write_tiny_engine(directory: Path, model: ModelConfig, build: BuildConfig, seed: int) -> Path:
    """A complete engine directory with `random_weights`; `build.dtype` must be concrete. Returns `directory`."""
    weights = random_weights(model, TORCH_DTYPES[build.dtype], seed, build.kv_cache_dtype)
    write_engine(
        directory,
        EngineConfig(model, build),
        weights.items(),
        lambda path: save_tiny_tokenizer(path, model.vocab_size),
        force=False,
    )
    return directory


def tiny_hf_config(model: ModelConfig) -> PretrainedConfig:
    """transformers' own config for that model."""
    names = {"amplitude": "attention_factor"}
    scaling = {} if model.rope_scaling is None else asdict(model.rope_scaling)
    constants: dict[str, Any] = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": {names.get(name, name): value for name, value in scaling.items()} or None,
        "max_position_embeddings": model.max_position_embeddings,
        "tie_word_embeddings": model.tie_word_embeddings,
        "eos_token_id": list(model.eos_token_ids),
        "bos_token_id": None,
        "initializer_range": 0.2,
    }
    return AutoConfig.for_model(model.family, **constants)


def tiny_hf_model(model: ModelConfig, seed: int = 0) -> PreTrainedModel:
    """transformers' own model of that family and shape, float32, with random weights, biases and norms."""
    torch.manual_seed(seed)
    hf_model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_hf_config(model))
    with torch.no_grad():
        for parameter in hf_model.parameters():
            if parameter.dim() == 1:  # transformers starts norms at 1 and biases at 0, which would hide mistakes
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return hf_model.eval()


def tiny_llama(model: ModelConfig, seed: int = 0) -> LlamaForCausalLM:
    """`tiny_hf_model` of the llama family."""
    llama = tiny_hf_model(model, seed)
    assert isinstance(llama, LlamaForCausalLM)
    return llama


def write_tiny_hf_checkpoint(directory: Path, hf_model: PreTrainedModel, shards: int = 1) -> Path:
    """save_pretrained with the tiny tokenizer, in about `shards` safetensors files. Returns `directory`."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in hf_model.state_dict().values())
    hf_model.save_pretrained(directory, max_shard_size=size // shards + 1)
    save_tiny_tokenizer(directory, hf_model.config.vocab_size)
    return directory


def _scaled(name: str, noise: torch.Tensor) -> torch.Tensor:
    if name.endswith("norm"):
        return 1 + 0.1 * noise
    if name.endswith("bias") or name == "embedding":
        return 0.3 * noise
    return 1.5 / noise.shape[1] ** 0.5 * noise


def _byte_names() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte, as the ByteLevel pre-tokenizer writes it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
