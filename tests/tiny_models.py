"""Tiny random models for tests: configs, fused weights, engine directories, Hugging Face and GGUF checkpoints."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import TORCH_DTYPES, EngineConfig, write_engine
from sparsespec.builder.fused_weights import fused_shapes
from sparsespec.builder.model_config import ModelConfig

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
    num_layers: int = 2,
    hidden_size: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    vocab_size: int = 128,
    tie_word_embeddings: bool = False,
    eos_token_ids: tuple[int, ...] = (0,),
) -> ModelConfig:
    """A model small enough that a forward pass over a few hundred tokens takes milliseconds."""
    return ModelConfig(
        family="llama",
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
    )


def random_weights(model: ModelConfig, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """Weights in the fused layout, scaled so that logits are neither flat nor one-hot; one seed gives one model."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in fused_shapes(model).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        weights[name] = _scaled(name, noise).to(dtype)
    return weights


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
    weights = random_weights(model, TORCH_DTYPES[build.dtype], seed)
    write_engine(
        directory,
        EngineConfig(model, build),
        weights.items(),
        lambda path: save_tiny_tokenizer(path, model.vocab_size),
        force=False,
    )
    return directory


def tiny_llama(model: ModelConfig, seed: int = 0) -> LlamaForCausalLM:
    """transformers' own model of that shape, float32, with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        rms_norm_eps=model.rms_norm_eps,
        rope_theta=model.rope_theta,
        max_position_embeddings=model.max_position_embeddings,
        tie_word_embeddings=model.tie_word_embeddings,
        eos_token_id=list(model.eos_token_ids),
        bos_token_id=None,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def write_tiny_hf_checkpoint(directory: Path, hf_model: LlamaForCausalLM, shards: int = 1) -> Path:
    """save_pretrained with the tiny tokenizer, in about `shards` safetensors files. Returns `directory`."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in hf_model.state_dict().values())
    hf_model.save_pretrained(directory, max_shard_size=size // shards + 1)
    save_tiny_tokenizer(directory, hf_model.config.vocab_size)
    return directory


def write_tiny_gguf(path: Path, hf_model: LlamaForCausalLM) -> Path:
    """The same model as float32 GGUF, with the rows of q and k permuted as llama.cpp's converter does."""
    config = hf_model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(_rope_theta(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_gguf_tokenizer(writer, config.vocab_size)
    _add_gguf_tensors(writer, hf_model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _scaled(name: str, noise: torch.Tensor) -> torch.Tensor:
    if name.endswith("norm"):
        return 1 + 0.1 * noise
    if name == "embedding":
        return 0.3 * noise
    return 1.5 / noise.shape[1] ** 0.5 * noise


def _byte_names() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte, as the ByteLevel pre-tokenizer writes it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _rope_theta(config: LlamaConfig) -> float:
    """transformers 5 keeps it in `rope_parameters`, 4 beside the other constants."""
    values = config.to_dict()
    return float(values["rope_theta"] if "rope_theta" in values else values["rope_parameters"]["rope_theta"])


def _add_gguf_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    vocabulary = tiny_tokenizer(vocab_size).get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL_TOKENS else normal for token in tokens])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_gguf_tensors(writer: gguf.GGUFWriter, hf_model: LlamaForCausalLM) -> None:
    config = hf_model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in hf_model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float()
        for projection, count in heads.items():
            if projection in name:
                values = _permuted(values, count)
        stored = names.get_name(name, try_suffixes=(".weight",))
        assert stored is not None
        writer.add_tensor(stored, values.contiguous().numpy())


def _permuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's row order: it rotates neighbouring rows, Hugging Face rotates row i with row i + head_dim / 2."""
    return rows.view(heads, 2, rows.shape[0] // heads // 2, -1).transpose(1, 2).reshape(rows.shape)
