"""config.json of a Hugging Face directory, compared with what transformers makes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from transformers import AutoConfig

from sparsespec.builder.checkpoint.hf_config import read_dtype, read_model_config
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.rope import Llama3Scaling, YarnScaling

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SIZES = {
    "vocab_size": 320,
    "hidden_size": 512,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 64,
}


def read(directory: Path, values: Mapping[str, object]) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps(values))
    return read_model_config(directory)


def config_of(family: str, **values: object) -> dict[str, object]:
    """A config.json that leaves out everything it may."""
    return {"model_type": family, "architectures": [ARCHITECTURES[family]], **SIZES, **values}


# As published, less what no reader needs.
PUBLISHED: dict[str, tuple[dict[str, object], ModelConfig]] = {
    "DeepSeek-R1-Distill-Llama-8B": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "eos_token_id": 128001,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": 128256,
        },
        ModelConfig(
            family="llama",
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            max_position_embeddings=131072,
            tie_word_embeddings=False,
            eos_token_ids=(128001,),
            rope_scaling=Llama3Scaling("llama3", 8.0, 1.0, 4.0, 8192),
        ),
    ),
    "DeepSeek-R1-Distill-Qwen-1.5B": (
        {
            "architectures": ["Qwen2ForCausalLM"],
            "eos_token_id": 151643,
            "hidden_act": "silu",
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "max_position_embeddings": 131072,
            "max_window_layers": 21,
            "model_type": "qwen2",
            "num_attention_heads": 12,
            "num_hidden_layers": 28,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_mrope": False,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        ModelConfig(
            family="qwen2",
            vocab_size=151936,
            hidden_size=1536,
            intermediate_size=8960,
            num_layers=28,
            num_heads=12,
            num_kv_heads=2,
            head_dim=128,
            rms_norm_eps=1e-6,
            rope_theta=10000.0,
            max_position_embeddings=131072,
            tie_word_embeddings=False,
            eos_token_ids=(151643,),
        ),
    ),
    # With the scaling that its model card advises: the factor is as written, not 40960 / 32768.
    "Qwen3-8B, YaRN": (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "max_position_embeddings": 40960,
            "max_window_layers": 36,
            "model_type": "qwen3",
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        ModelConfig(
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
            rope_scaling=YarnScaling("yarn", 4.0, 32.0, 1.0, 32768, 1.138629436111989),
        ),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config(tmp_path: Path, name: str) -> None:
    values, expected = PUBLISHED[name]
    assert read(tmp_path, values) == expected
    assert read_dtype(tmp_path, stored="float32") == "bfloat16"


@pytest.mark.parametrize("num_kv_heads", [{}, {"num_key_value_heads": None}], ids=["absent", "null"])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_defaults_are_transformers(tmp_path: Path, family: str, num_kv_heads: dict[str, object]) -> None:
    model = read(tmp_path, config_of(family, **num_kv_heads))
    theirs = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert model.num_kv_heads == theirs["num_key_value_heads"]
    assert model.head_dim == theirs.get("head_dim", 512 // 64)
    assert model.rms_norm_eps == theirs["rms_norm_eps"]
    assert model.max_position_embeddings == theirs["max_position_embeddings"]
    assert model.tie_word_embeddings == theirs["tie_word_embeddings"]
    assert model.rope_theta == 10000.0
    assert model.rope_scaling is None


@pytest.mark.parametrize(
    "values",
    [
        {"use_sliding_window": True, "max_window_layers": 2},
        {"use_sliding_window": True, "max_window_layers": 3},
        {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": None},
        {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 16},
        {"use_sliding_window": True},
        {"use_sliding_window": True, "num_hidden_layers": 29},
        {"use_sliding_window": False, "max_window_layers": 0, "sliding_window": 16},
        {"use_sliding_window": True, "max_window_layers": 0, "layer_types": ["full_attention"] * 3},
        {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_windows_are_refused_where_transformers_has_them(
    tmp_path: Path, family: str, values: dict[str, object]
) -> None:
    """A switch that no layer heeds is harmless."""
    config = config_of(family, **values)
    (tmp_path / "config.json").write_text(json.dumps(config))
    if "sliding_attention" not in AutoConfig.from_pretrained(tmp_path).layer_types:
        assert read(tmp_path, config).family == family
        return
    with pytest.raises(CheckpointError, match=r"config\.json: (use_sliding_window|layer_types): only .* is supported"):
        read(tmp_path, config)


def test_windows_are_nothing_to_llama(tmp_path: Path) -> None:
    assert read(tmp_path, config_of("llama", use_sliding_window=True, max_window_layers=0)).num_layers == 3


def test_qwen2_has_its_biases_whatever_it_says(tmp_path: Path) -> None:
    assert read(tmp_path, config_of("qwen2", attention_bias=False)).qkv_bias
    assert read(tmp_path, config_of("qwen2", attention_bias=True)).qkv_bias


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("llama", {"model_type": "qwen3_moe"}, "model_type: expected one of llama, qwen2, qwen3, found 'qwen3_moe'"),
        ("llama", {"model_type": None}, "model_type: expected one of llama, qwen2, qwen3, found ''"),
        (
            "qwen2",
            {"architectures": ["Qwen2ForRewardModel"]},
            "architectures: only .*Qwen2ForCausalLM.* is supported",
        ),
        ("qwen3", {"architectures": ["LlamaForCausalLM"]}, "architectures: only .* is supported for qwen3"),
        ("llama", {"attention_bias": True}, "attention_bias: only False is supported, found True"),
        ("qwen3", {"attention_bias": True}, "attention_bias: only False is supported, found True"),
        ("llama", {"mlp_bias": True}, "mlp_bias: only False is supported, found True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act: only 'silu' is supported, found 'gelu'"),
        ("qwen2", {"quantization_config": {"bits": 4}}, "quantization_config: quant_method: only 'modelopt'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: only 1.0 is supported, found 0.5"),
        ("llama", {"hidden_size": None}, "hidden_size: expected int, found nothing"),
        ("llama", {"num_attention_heads": "4"}, "num_attention_heads: expected int, found '4'"),
        ("llama", {"num_attention_heads": 0}, "num_heads must be at least 1, found 0"),
        ("llama", {"num_hidden_layers": 10**9}, "num_layers must be at most 1000, found 1000000000"),
        ("qwen3", {"num_attention_heads": 28}, "num_heads 28 is not a multiple of num_kv_heads 32"),
        ("qwen3", {"layer_types": "full_attention"}, "layer_types: expected a list, found 'full_attention'"),
        ("llama", {"layer_types": ["chunked_attention"]}, "layer_types: only 'full_attention' .* found 'chunked"),
        ("llama", {"rope_parameters": 1}, "rope_parameters: expected an object, found 1"),
        ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps: expected a number below 1e308, found one of 401 digits"),
        ("llama", {"rms_norm_eps": 0}, "rms_norm_eps must be finite and above 0, found 0.0"),
        ("llama", {"eos_token_id": "x"}, "eos_token_id: expected token ids, found 'x'"),
        ("llama", {"eos_token_id": list(range(17))}, "eos_token_ids: at most 16, found 17"),
        ("llama", {"eos_token_id": 320}, "eos_token_ids: 320 is outside the vocabulary of 320"),
    ],
)
def test_unsupported_or_broken_config(tmp_path: Path, family: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        read(tmp_path, config_of(family, **values))


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(7, None, (7,)), (None, None, ()), ([1, 2], None, (1, 2)), (7, [3, 4], (3, 4)), (7, 0, (0,))],
)
def test_eos_token_ids(tmp_path: Path, config: object, generation: object, expected: tuple[int, ...]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert read(tmp_path, config_of("llama", eos_token_id=config)).eos_token_ids == expected


def test_broken_eos_token_id_of_generation_config(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id: expected .* found '</s>'$"):
        read(tmp_path, config_of("llama"))


def test_broken_eos_token_id_that_is_overridden_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0}')
    with pytest.raises(CheckpointError, match=r"^\S+config\.json: eos_token_id: expected token ids, found 'x'$"):
        read(tmp_path, config_of("llama", eos_token_id="x"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [({}, "float16"), ({"dtype": "bfloat16"}, "bfloat16"), ({"torch_dtype": "float32"}, "float32")],
)
def test_dtype(tmp_path: Path, values: dict[str, object], expected: str) -> None:
    read(tmp_path, config_of("llama", **values))
    assert read_dtype(tmp_path, stored="float16") == expected


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "auto"])
def test_unsupported_dtype(tmp_path: Path, dtype: str) -> None:
    read(tmp_path, config_of("llama", dtype=dtype))
    with pytest.raises(CheckpointError, match=rf"config\.json: dtype: expected a floating-point type, found '{dtype}'"):
        read_dtype(tmp_path, stored="float16")
