"""Damaged JSON and tokenizer files of checkpoints and engines are read, or refused with a clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from hostile_campaign import campaign, result_or_error
from hostile_checkpoints import check_model, read_all, small_model
from hostile_mutations import damaged_bytes, damaged_json, with_damaged_section
from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import CONFIG_FILE, EngineConfig, read_engine_config
from sparsespec.builder.model_config import Family, ModelConfig
from sparsespec.builder.rope import YarnScaling
from sparsespec.builder.tokenizer_files import copy_tokenizer
from sparsespec.runtime.text import TextCodec
from tiny_modelopt import HF_QUANT_CONFIG, edit_json, write_tiny_modelopt
from tiny_models import tiny_hf_model, write_tiny_engine, write_tiny_hf_checkpoint
from tiny_trtllm import edit_config, write_tiny_trtllm

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 32, "beta_slow": 1}
LINEAR = {"type": "linear", "factor": 2.0}
YARN_SCALING = YarnScaling("yarn", 4.0, 32.0, 1.0, 1024, 1.1)
FAMILIES: tuple[Family, ...] = ("llama", "qwen2", "qwen3")
OTHER_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")
TRTLLM_KEYS = (
    "sliding_window",
    "rotary_pct",
    "qwen_type",
    "share_embedding_table",
    "is_pruned",
    "pretrained_config",
    "model_type",
)
QUANTIZATION_KEYS = (
    "quant_library",
    "kv_cache_quant_algo",
    "exclude_modules",
    "quantization",
    "quantized_layers",
    "group_size",
    "producer",
)
HF_KEYS = (
    "attention_bias",
    "quantization_config",
    "layer_types",
    "sliding_window",
    "use_sliding_window",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "rope_parameters",
    "torch_dtype",
    "max_window_layers",
)


def test_hugging_face(tmp_path: Path) -> None:
    directories = []
    for family in FAMILIES:
        directory = write_tiny_hf_checkpoint(tmp_path / family, tiny_hf_model(small_model(family)))
        directories.append(directory)
    intact = [json.loads((directory / "config.json").read_text()) for directory in directories]

    def attempt(random: Random) -> None:
        number = random.randrange(len(intact))
        scaling = random.choice(({}, {"rope_scaling": random.choice((LLAMA3, YARN, LINEAR))}))
        (directories[number] / "config.json").write_bytes(damaged_json(intact[number] | scaling, random, HF_KEYS))
        read_all(directories[number])

    campaign("config.json of Hugging Face", attempt)


def test_tensorrt_llm(tmp_path: Path) -> None:
    directories = []
    for family in FAMILIES:
        directory = write_tiny_trtllm(tmp_path / family, tiny_hf_model(small_model(family)), tp_size=2)
        edit_config(directory, eos_token_id=0)  # or every input would read the tokenizer
        directories.append(directory)
    intact = [json.loads((directory / "config.json").read_text()) for directory in directories]

    def attempt(random: Random) -> None:
        number = random.randrange(len(intact))
        scaling = random.choice(({}, {"rotary_scaling": random.choice((LLAMA3, YARN, LINEAR))}))
        (directories[number] / "config.json").write_bytes(damaged_json(intact[number] | scaling, random, TRTLLM_KEYS))
        read_all(directories[number])

    campaign("config.json of TensorRT-LLM", attempt)


def test_modelopt(tmp_path: Path) -> None:
    """Half of the damage is in the section about FP8."""
    directory = write_tiny_modelopt(tmp_path / "fp8", tiny_hf_model(small_model("qwen2")))
    path = directory / "config.json"
    intact = json.loads(path.read_text())

    def attempt(random: Random) -> None:
        keys = QUANTIZATION_KEYS
        if random.random() < 0.5:
            path.write_bytes(with_damaged_section(intact, "quantization_config", random, keys))
        else:
            path.write_bytes(damaged_json(intact, random, (*keys, *HF_KEYS)))
        read_all(directory)

    campaign("config.json of ModelOpt", attempt)


def test_hf_quant_config(tmp_path: Path) -> None:
    """With and without a word about it in config.json."""
    directory = write_tiny_modelopt(tmp_path / "fp8", tiny_hf_model(small_model()))
    told = (directory / "config.json").read_bytes()
    edit_json(directory / "config.json", quantization_config=None)
    silent = (directory / "config.json").read_bytes()

    def attempt(random: Random) -> None:
        (directory / "config.json").write_bytes(random.choice((told, silent)))
        (directory / "hf_quant_config.json").write_bytes(damaged_json(HF_QUANT_CONFIG, random, QUANTIZATION_KEYS))
        model = read_all(directory)
        if isinstance(model, ModelConfig):
            assert model.quantization == "fp8"

    campaign("hf_quant_config.json", attempt)


def test_generation_config(tmp_path: Path) -> None:
    directory = write_tiny_hf_checkpoint(tmp_path / "hf", tiny_hf_model(small_model()))
    _try_json("generation_config.json", directory / "generation_config.json", lambda: read_all(directory))


def test_index_of_shards(tmp_path: Path) -> None:
    directory = write_tiny_hf_checkpoint(tmp_path / "hf", tiny_hf_model(small_model()), shards=2)
    _try_json("model.safetensors.index.json", directory / "model.safetensors.index.json", lambda: read_all(directory))


def test_engine(tmp_path: Path) -> None:
    models = [small_model(), replace(small_model(), rope_scaling=YARN_SCALING), small_model(quantization="fp8")]
    engines = [_engine(tmp_path / str(number), model) for number, model in enumerate(models)]
    intact = [json.loads((engine / CONFIG_FILE).read_text()) for engine in engines]
    target = tmp_path / CONFIG_FILE

    def attempt(random: Random) -> None:
        target.write_bytes(damaged_json(random.choice(intact), random, ("model", "extra", "tensorrt")))
        config = result_or_error(lambda: read_engine_config(tmp_path), str(tmp_path))
        if isinstance(config, EngineConfig):
            check_model(config.model)

    campaign("config.json of an engine", attempt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_theta": 5e-324}, "rope_theta must be at least 1e-06, found 5e-324"),
        (
            {"rope_scaling": {"rope_type": "divisors", "divisors": [1.0, 5e-324]}},
            "divisors must be at least 1e-06, found 5e-324",
        ),
        ({"vocab_size": 10**4000}, "vocab_size must be at most 2147483647, found an integer of 4001 digits"),
        ({"family": "x" * 10_000}, "family: expected one of llama, qwen2, qwen3, found 'xxx"),
        ({"family": ["llama"]}, "family: expected one of llama, qwen2, qwen3, found ['llama']"),
    ],
)
def test_constants_that_no_network_has(tmp_path: Path, change: dict[str, object], message: str) -> None:
    engine = _engine(tmp_path / "engine", small_model())
    document = json.loads((engine / CONFIG_FILE).read_text())
    document["model"] |= change
    (engine / CONFIG_FILE).write_text(json.dumps(document))
    error = result_or_error(lambda: read_engine_config(engine), str(tmp_path))
    assert message in str(error)


def test_tokenizer_of_a_checkpoint(tmp_path: Path) -> None:
    directory = write_tiny_hf_checkpoint(tmp_path / "hf", tiny_hf_model(small_model()))

    def copy() -> None:
        result_or_error(lambda: copy_tokenizer(directory, tmp_path / "copy"), str(tmp_path))

    _try_tokenizer("tokenizer files", directory, copy)


def test_tokenizer_of_an_engine(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "engine", small_model())

    def use() -> None:
        codec = result_or_error(lambda: TextCodec.load(engine), str(tmp_path))
        if isinstance(codec, TextCodec):
            for text in ("a cat\n", "", "<|eos|>é😀\0"):
                result_or_error(lambda text=text: codec.encode(text))
                result_or_error(lambda text=text: codec.encode_chat(text))
            stream = codec.stream(("stop",))
            for token in (0, 5, 15, 3):
                stream.push(token, may_stop=True)
            stream.flush()

    _try_tokenizer("tokenizer of an engine", engine, use)


def _try_json(target: str, path: Path, read: Callable[[], object]) -> None:
    intact = json.loads(path.read_text())

    def attempt(random: Random) -> None:
        path.write_bytes(damaged_json(intact, random))
        read()

    campaign(target, attempt)


def _try_tokenizer(target: str, directory: Path, read: Callable[[], object]) -> None:
    """One of the tokenizer's files is damaged, replaced, or stands beside another kind."""
    names = ("tokenizer.json", "tokenizer.json", "tokenizer_config.json")
    intact = {name: (directory / name).read_bytes() for name in names}

    def attempt(random: Random) -> None:
        name = random.choice(names)
        content = intact[name]
        damaged = random.choice(
            (lambda: damaged_json(json.loads(content), random), lambda: damaged_bytes(content, random))
        )
        (directory / name).write_bytes(damaged())
        others = [directory / random.choice(OTHER_FILES)] if random.random() < 0.1 else []
        for other in others:
            other.write_bytes(random.choice((b"", b"{}", b"[1]", random.randbytes(100), content)))
        read()
        (directory / name).write_bytes(content)
        for other in others:
            other.unlink()

    campaign(target, attempt)


def _engine(directory: Path, model: ModelConfig) -> Path:
    return write_tiny_engine(directory, model, BuildConfig(dtype="float32"), seed=0)
