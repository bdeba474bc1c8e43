"""Directories with something else where a file should be: refused with a clear error, never waited for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest

from hostile_campaign import campaign, result_or_error
from hostile_checkpoints import read_all, small_model
from hostile_engines import HostileTensorRT, install_tensorrt, write_tensorrt_engine
from hostile_mutations import damaged_bytes, with_damaged_section, with_other_values
from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import CONFIG_FILE, ENGINE_FILES, EngineConfig, read_engine_config
from sparsespec.builder.errors import InputError
from sparsespec.builder.trt.config import BackendName
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine, load_engine
from sparsespec.runtime.sampling_params import SamplingParams
from tiny_models import tiny_hf_model, write_tiny_engine, write_tiny_hf_checkpoint
from tiny_trtllm import write_tiny_trtllm

BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
MORE_KEYS = ("drafts", "rope_scaling", "quantization", "aliased_io", "opt_batch_size")
# What fields that name a choice may be.
WORDS = (
    "none",
    "mean",
    "diagonal",
    "rows",
    "draft",
    "exact",
    "detailed",
    "bfloat16",
    "float16",
    "qwen2",
    "qwen3",
    "9.0",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def test_engines(tmp_path: Path) -> None:
    engine = write_tiny_engine(tmp_path / "intact", small_model(), BuildConfig(dtype="float32"), seed=0)
    target = tmp_path / "hostile"
    names = ("config.json", "weights.safetensors", *TOKENIZER_FILES)

    def attempt(random: Random) -> None:
        _copy_with_surprises(engine, target, names, random)
        result_or_error(lambda: load_engine(target, RuntimeConfig(device="cpu")), str(target))

    campaign("files of an engine", attempt)


def test_checkpoints(tmp_path: Path) -> None:
    directories = [
        write_tiny_hf_checkpoint(tmp_path / "hf", tiny_hf_model(small_model())),
        write_tiny_hf_checkpoint(tmp_path / "sharded", tiny_hf_model(small_model()), shards=2),
        write_tiny_trtllm(tmp_path / "trtllm", tiny_hf_model(small_model()), tp_size=2),
    ]
    target = tmp_path / "hostile"

    def attempt(random: Random) -> None:
        directory = random.choice(directories)
        present = (path.name for path in sorted(directory.iterdir()))
        names = tuple(dict.fromkeys((*present, *TOKENIZER_FILES, "generation_config.json")))
        _copy_with_surprises(directory, target, names, random)
        read_all(target)

    campaign("files of a checkpoint", attempt)


def test_tensorrt_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TensorRT, as far as anybody can see: what loads, runs."""
    engine, target = write_tensorrt_engine(tmp_path / "intact"), tmp_path / "hostile"
    trt = install_tensorrt(tmp_path, monkeypatch)
    names = ("config.json", "weights.safetensors", *ENGINE_FILES.values(), "draft.layers.json")

    def attempt(random: Random) -> None:
        _copy_with_surprises(engine, target, names, random)
        _decode(target, trt)

    campaign("files of a TensorRT engine", attempt)


def test_config_of_a_tensorrt_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever config.json says, TensorRT runs engines of the sizes that they were built for, or none."""
    engine = write_tensorrt_engine(tmp_path / "engine")
    trt = install_tensorrt(tmp_path, monkeypatch)
    intact = json.loads((engine / CONFIG_FILE).read_text())

    def attempt(random: Random) -> None:
        section = random.choice(("model", "build", "tensorrt"))
        (engine / CONFIG_FILE).write_bytes(_damaged_section(intact, section, random))
        _decode(engine, trt)

    campaign("config.json of a TensorRT engine", attempt)


def test_tensorrt_section(tmp_path: Path) -> None:
    """Without TensorRT: the torch executor runs what can be read, and TensorRT is not taken for granted."""
    engine = write_tensorrt_engine(tmp_path / "engine")
    intact = json.loads((engine / CONFIG_FILE).read_text())

    def attempt(random: Random) -> None:
        (engine / CONFIG_FILE).write_bytes(_damaged_section(intact, "tensorrt", random))
        config = result_or_error(lambda: read_engine_config(engine), str(engine))
        assert isinstance(config, EngineConfig) or str(engine / CONFIG_FILE) in str(config)
        if isinstance(config, EngineConfig) and config.tensorrt is not None:
            assert config.tensorrt.config.opt_batch_size == config.tensorrt.opt_batch_size
        for backend in BACKENDS:
            loaded = result_or_error(lambda backend=backend: _load(engine, backend), str(engine))
            runs = isinstance(config, EngineConfig) and backend != "tensorrt"
            assert isinstance(loaded, LoadedEngine if runs else InputError)
            assert isinstance(loaded, InputError) or loaded.backend == "torch"

    campaign("tensorrt section of an engine", attempt)


def _damaged_section(document: Mapping[str, Any], name: str, random: Random) -> bytes:
    if random.random() < 0.5:
        return with_damaged_section(document, name, random, MORE_KEYS)
    return with_other_values(document, name, random, WORDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opt_batch_size": 0}, "tensorrt: opt_batch_size must be at least 1, found 0"),
        ({"builder_opt": 6}, "tensorrt: builder_opt must be at most 5, found 6"),
        ({"gpu": "y" * 5000}, "tensorrt: gpu: expected 1 to 200 printable characters, found 'yyy"),
        ({"version": "11.4\n"}, "tensorrt: version: expected 1 to 200 printable characters, found '11.4\\n'"),
    ],
)
def test_what_no_tensorrt_says_of_an_engine(tmp_path: Path, change: dict[str, object], message: str) -> None:
    engine = write_tensorrt_engine(tmp_path / "engine")
    document = json.loads((engine / CONFIG_FILE).read_text())
    document["tensorrt"] |= change
    (engine / CONFIG_FILE).write_text(json.dumps(document))
    error = result_or_error(lambda: read_engine_config(engine), str(engine))
    assert message in str(error)


def _load(engine: Path, backend: BackendName) -> LoadedEngine:
    return load_engine(engine, RuntimeConfig(device="cpu", backend=backend))


def _decode(engine: Path, trt: HostileTensorRT) -> None:
    """Load for the backend that fits; TensorRT's engines answer a prompt."""
    loaded = result_or_error(lambda: _load(engine, "auto"), str(engine))
    if isinstance(loaded, LoadedEngine) and loaded.engines is not None:
        trt.runs.clear()
        llm = result_or_error(lambda: LLM(loaded, SpeculationConfig(k=3)), str(engine))
        if isinstance(llm, LLM):
            answer = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=5, ignore_eos=True))[0].outputs[0]
            assert len(answer.token_ids) == 5
            assert trt.runs


def _copy_with_surprises(source: Path, target: Path, names: tuple[str, ...], random: Random) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for name in random.sample(names, random.choice((1, 1, 2))):
        _replace(target / name, random)


def _replace(path: Path, random: Random) -> None:
    content = path.read_bytes() if path.is_file() else b"{}"
    path.unlink(missing_ok=True)
    kinds: tuple[Callable[[], object], ...] = (
        lambda: None,
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to("/dev/null"),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(random.randbytes(100)),
        lambda: path.write_bytes(damaged_bytes(content, random)),
        lambda: path.write_bytes(content * 2),
    )
    random.choice(kinds)()
