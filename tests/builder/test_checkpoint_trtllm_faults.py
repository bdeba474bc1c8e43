from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsespec.builder.checkpoint import open_checkpoint
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.fused_weights import fused_sources
from tiny_models import tiny_hf_model, tiny_model_config
from tiny_trtllm import edit_config, edit_rank, write_tiny_trtllm

MODEL = tiny_model_config(num_layers=3, vocab_size=101)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A llama over four ranks, of which two and two share a KV head."""
    return write_tiny_trtllm(tmp_path / "trtllm", tiny_hf_model(MODEL), tp_size=4)


def test_eos_outside_the_vocabulary(directory: Path) -> None:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 101}))
    with pytest.raises(CheckpointError, match=r"eos_token_ids: 101 is outside the vocabulary of 101"):
        open_checkpoint(str(directory))


@pytest.mark.parametrize("generation_config", [False, True])
def test_no_tokenizer(directory: Path, tmp_path: Path, generation_config: bool) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    if generation_config:
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    with pytest.raises(CheckpointError, match=rf"{directory}: no tokenizer; .*copy the original model's tokenizer"):
        open_checkpoint(str(directory)).save_tokenizer(tmp_path)


MAPPING = {"world_size": 4, "tp_size": 4, "pp_size": 1}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"architecture": "MixtralForCausalLM"}, r"architecture: expected one of .*, found 'MixtralForCausalLM'"),
    ({"architecture": None}, r"architecture: expected one of .*, found ''"),
    ({"architecture": "QWenForCausalLM"}, r"qwen_type: expected one of qwen2, qwen3, found ''"),
    ({"architecture": "QWenForCausalLM", "qwen_type": "qwen"}, "qwen_type: .*found 'qwen'"),
    ({"architecture": "Qwen2ForCausalLM", "qwen_type": "qwen2_vl"}, "qwen_type: expected 'qwen2' .*found 'qwen2_vl'"),
    ({"quantization": {"quant_algo": "FP8"}}, "quantization: quant_algo: only 'none' is supported, found 'FP8'"),
    ({"quantization": {"kv_cache_quant_algo": "INT8"}}, "kv_cache_quant_algo: only 'FP8' is supported, found 'INT8'"),
    ({"moe": {"num_experts": 8}}, "moe: num_experts: only 0 is supported, found 8"),
    ({"moe_num_experts": 8}, "moe_num_experts: only 0 is supported, found 8"),
    ({"hidden_act": "gelu"}, "hidden_act: only 'silu' is supported, found 'gelu'"),
    ({"position_embedding_type": "rope_gptj"}, "position_embedding_type: only 'rope_gpt_neox' .*found 'rope_gptj'"),
    ({"position_embedding_type": None}, "position_embedding_type: only 'rope_gpt_neox' is supported, found ''"),
    ({"rotary_pct": 0.5}, "rotary_pct: only 1.0 is supported, found 0.5"),
    ({"rotary_embedding_dim": 8}, "rotary_embedding_dim: expected head_size 16, found 8"),
    (
        {"rotary_scaling": {"type": "dynamic", "factor": 2.0}},
        "rotary_scaling: rope_type: expected one of .*, found 'dynamic'",
    ),
    ({"rotary_scaling": {"type": "llama3"}}, "rotary_scaling: factor: expected float, found nothing"),
    ({"attn_bias": True}, "attn_bias: only False is supported, found True"),
    ({"mlp_bias": True}, "mlp_bias: only False is supported, found True"),
    ({"qk_layernorm": True}, "qk_layernorm: only False is supported, found True"),
    ({"use_logn_attn": True}, "use_logn_attn: only False is supported, found True"),
    ({"residual_mlp": True}, "residual_mlp: only False is supported, found True"),
    ({"fc_after_embed": True}, "fc_after_embed: only False is supported, found True"),
    ({"use_input_layernorm_in_first_layer": False}, "use_input_layernorm_in_first_layer: only True is supported"),
    ({"use_last_layernorm": False}, "use_last_layernorm: only True is supported, found False"),
    ({"embedding_multiplier": 12.0}, "embedding_multiplier: only 1.0 is supported, found 12.0"),
    ({"attention_multiplier": 2}, "attention_multiplier: only 1.0 is supported, found 2.0"),
    ({"residual_multiplier": 0.22}, "residual_multiplier: only 1.0 is supported, found 0.22"),
    ({"output_multiplier_scale": 0.5}, "output_multiplier_scale: only 1.0 is supported, found 0.5"),
    ({"is_pruned": True}, "is_pruned: only False is supported, found True"),
    ({"sliding_window": 4096}, "sliding_window: only None is supported, found 4096"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping: only None is supported, found 30.0"),
    ({"pretrained_config": {}}, "a built TensorRT-LLM engine; expected the checkpoint that it was built from"),
    ({"hidden_size": None}, "hidden_size: expected int, found nothing"),
    ({"hidden_size": "64"}, "hidden_size: expected int, found '64'"),
    ({"max_position_embeddings": None}, "max_position_embeddings: expected int, found nothing"),
    ({"norm_epsilon": 0}, "rms_norm_eps must be finite and above 0, found 0.0"),
    ({"num_hidden_layers": 10**9}, "num_layers must be .*, found 1000000000"),
    ({"dtype": "int8"}, "dtype: expected a floating-point type, found 'int8'"),
    ({"mapping": [4]}, r"mapping: expected an object, found \[4\]"),
    ({"mapping": MAPPING | {"tp_size": 0}}, "mapping: tp_size must be at least 1, found 0"),
    ({"mapping": MAPPING | {"pp_size": 4}}, "mapping: pp_size must be .* 3, found 4"),
    ({"mapping": MAPPING | {"cp_size": -1}}, "mapping: cp_size must be at least 1, found -1"),
    ({"mapping": MAPPING | {"world_size": 8}}, r"world_size: expected tp_size \* pp_size \* cp_size = 4, found 8"),
    ({"mapping": MAPPING | {"auto_parallel": True}}, "mapping: auto_parallel: only False is supported, found True"),
    ({"mapping": {"tp_size": 3}}, "num_attention_heads: expected a multiple of mapping.tp_size 3, found 4"),
    ({"num_attention_heads": 12, "num_key_value_heads": 3}, "num_key_value_heads: .* divisor .*tp_size 4, found 3"),
    ({"intermediate_size": 130}, "intermediate_size: expected a multiple of mapping.tp_size 4, found 130"),
    ({"use_parallel_embedding": True, "embedding_sharding_dim": 2}, "embedding_sharding_dim: expected 0 or 1, found 2"),
    (
        {"use_parallel_embedding": True, "embedding_sharding_dim": 1, "hidden_size": 66},
        "hidden_size: expected a multiple of mapping.tp_size 4, found 66",
    ),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused_config(directory: Path, values: dict[str, Any], message: str) -> None:
    edit_config(directory, **values)
    with pytest.raises(CheckpointError, match=rf"{directory}/config\.json: .*{message}"):
        open_checkpoint(str(directory))


def test_bias_where_the_family_has_none(tmp_path: Path) -> None:
    directory = write_tiny_trtllm(tmp_path / "trtllm", tiny_hf_model(tiny_model_config(family="qwen2")))
    edit_config(directory, attn_bias=False)
    with pytest.raises(CheckpointError, match="attn_bias: only True is supported, found False"):
        open_checkpoint(str(directory))


def test_missing_rank(directory: Path) -> None:
    (directory / "rank3.safetensors").unlink()
    message = r"rank3\.safetensors: expected 4 ranks \(mapping: tp_size 4, pp_size 1\), found 3"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(directory))


def test_surplus_rank(directory: Path) -> None:
    edit_config(directory, mapping={"world_size": 2, "tp_size": 2, "pp_size": 1})
    message = r"rank2\.safetensors: expected 2 ranks \(mapping: tp_size 2, pp_size 1\), found another"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(directory))


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_rank(directory: Path, size: int) -> None:
    path = directory / "rank2.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"rank2\.safetensors: damaged; expected a safetensors file"):
        open_checkpoint(str(directory))


def test_rank_that_is_a_directory(directory: Path) -> None:
    path = directory / "rank2.safetensors"
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"rank2\.safetensors: cannot be read: expected a regular file"):
        open_checkpoint(str(directory))


def read_all(directory: Path) -> None:
    checkpoint = open_checkpoint(str(directory))
    for sources in fused_sources(checkpoint.model).values():
        for name, shape in sources.items():
            checkpoint.tensor(name, shape)


def put(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[name] = change(tensors[name]).contiguous()

    return edit


LAYER = "transformer.layers.1."
DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "no projection": (
        lambda tensors: tensors.pop(f"{LAYER}mlp.fc.weight"),
        r"mlp\.fc\.weight: expected a tensor, found none",
    ),
    "no output projection": (
        lambda tensors: tensors.pop("lm_head.weight"),
        r"lm_head\.weight: expected a tensor, found none",
    ),
    "heads of another rank's size": (
        put(f"{LAYER}attention.qkv.weight", lambda tensor: tensor[:-1]),
        r"attention\.qkv\.weight: expected shape \[48, 64\], found \[47, 64\]",
    ),
    "unpadded vocabulary": (
        put("lm_head.weight", lambda tensor: tensor[:23]),
        r"lm_head\.weight: expected shape \[26, 64\], found \[23, 64\]",
    ),
    "another dtype": (
        put(f"{LAYER}attention.dense.weight", lambda tensor: tensor.half()),
        r"attention\.dense\.weight: expected F32 as in rank0\.safetensors, found F16",
    ),
    "another model's norm": (
        put("transformer.ln_f.weight", lambda tensor: tensor + 1),
        r"ln_f\.weight: expected the same values as in rank0\.safetensors",
    ),
    "another model's KV head": (
        put(f"{LAYER}attention.qkv.weight", lambda tensor: tensor + 1),
        r"attention\.qkv\.weight: expected the same values as in rank2\.safetensors",
    ),
    "scales": (
        lambda tensors: tensors.update({f"{LAYER}mlp.fc.weights_scaling_factor": torch.ones(1)}),
        r"mlp\.fc\.weights_scaling_factor: not a tensor of a plain model",
    ),
    "fused projections": (
        lambda tensors: tensors.update({f"{LAYER}mlp.fused_fc.weight": torch.ones(64, 64)}),
        r"mlp\.fused_fc\.weight: not a tensor of a plain model",
    ),
    "biases": (
        lambda tensors: tensors.update({f"{LAYER}attention.qkv.bias": torch.ones(48)}),
        r"attention\.qkv\.bias: not a tensor of a plain model",
    ),
    "a layer too many": (
        lambda tensors: tensors.update({"transformer.layers.3.post_layernorm.weight": torch.ones(64)}),
        r"transformer\.layers\.3\.post_layernorm\.weight: not a tensor of a plain model",
    ),
}


@pytest.mark.parametrize(("edit", "message"), DAMAGE.values(), ids=list(DAMAGE))
def test_damaged_rank(directory: Path, edit: Callable[[dict[str, Tensor]], object], message: str) -> None:
    edit_rank(directory, 3, edit)
    with pytest.raises(CheckpointError, match=rf"{directory}/rank3\.safetensors: .*{message}"):
        read_all(directory)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_unsupported_dtype(directory: Path, dtype: torch.dtype) -> None:
    for rank in range(4):
        edit_rank(directory, rank, put(f"{LAYER}mlp.fc.weight", lambda tensor: tensor.to(dtype)))
    with pytest.raises(CheckpointError, match=r"mlp\.fc\.weight: expected one of .*, found torch\."):
        read_all(directory)


def test_tied_to_another_projection(directory: Path) -> None:
    edit_config(directory, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"config\.json: tied embeddings: expected lm_head\.weight to be"):
        open_checkpoint(str(directory))


def test_stages_of_another_depth(tmp_path: Path) -> None:
    """A config that lies about its depth moves layers between the stages."""
    directory = write_tiny_trtllm(tmp_path / "trtllm", tiny_hf_model(MODEL), pp_size=2)
    edit_config(directory, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"rank0\.safetensors: transformer\.layers\.1\..*not a tensor"):
        open_checkpoint(str(directory))
    edit_config(directory, num_hidden_layers=4)
    with pytest.raises(CheckpointError, match=r"rank1\.safetensors: transformer\.layers\.1\..*found none"):
        open_checkpoint(str(directory))
