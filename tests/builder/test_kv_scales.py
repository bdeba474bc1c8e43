"""Scales of an FP8 KV cache: from a checkpoint's tensors, or 1.0, to the engine's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsespec.builder import build_engine
from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.checkpoint import open_checkpoint
from sparsespec.builder.engine_dir import load_weights, read_engine_config
from sparsespec.builder.errors import CheckpointError, EngineError
from sparsespec.builder.fuse import fused_weights
from sparsespec.builder.fused_weights import fused_specs
from sparsespec.runtime.llm import LLM
from tiny_gguf import write_tiny_gguf
from tiny_llm import first_answers, greedy, random_prompts
from tiny_modelopt import write_tiny_modelopt
from tiny_models import tiny_hf_model, tiny_llama, tiny_model_config, write_tiny_engine, write_tiny_hf_checkpoint
from tiny_trtllm import edit_config, edit_rank, write_tiny_trtllm

MODEL = tiny_model_config(num_layers=2)  # of two KV heads
ATTENTION = "model.layers.1.self_attn"
MODELOPT, OTHERS = ("k_proj.k_scale", "v_proj.v_scale"), ("k_scale", "v_scale")


def hf_directory(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """With more tensors, by their names in the second layer's attention."""
    directory = write_tiny_hf_checkpoint(path, tiny_hf_model(MODEL))
    file = directory / "model.safetensors"
    save_file(load_file(file) | {f"{ATTENTION}.{name}": tensor for name, tensor in tensors.items()}, file)
    return directory


def one(value: float) -> Tensor:
    return torch.tensor(value)


def read(directory: Path, layer: int = 1) -> list[list[float]] | None:
    scale = open_checkpoint(str(directory)).kv_scale(layer)
    assert scale is None or (scale.dtype, scale.shape) == (torch.float32, (2, 2))
    return None if scale is None else scale.tolist()


@pytest.mark.parametrize("names", [MODELOPT, OTHERS])
@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ((one(0.5), one(3.0)), [[0.5, 0.5], [3.0, 3.0]]),
        ((torch.tensor([0.5]), one(3.0)), [[0.5, 0.5], [3.0, 3.0]]),
        ((torch.tensor([0.5, 0.25]), torch.tensor([3.0, 4.0])), [[0.5, 0.25], [3.0, 4.0]]),
        ((one(0.5).bfloat16(), torch.tensor([3.0, 4.0]).half()), [[0.5, 0.5], [3.0, 4.0]]),
    ],
)
def test_of_hugging_face(
    names: tuple[str, str], tensors: tuple[Tensor, Tensor], expected: list[list[float]], tmp_path: Path
) -> None:
    """One number for a layer, or one for each head."""
    directory = hf_directory(tmp_path / "hf", dict(zip(names, tensors, strict=True)))
    assert read(directory) == expected
    assert read(directory, layer=0) is None


@pytest.mark.parametrize("shards", [1, 2])
def test_of_modelopt(shards: int, tmp_path: Path) -> None:
    directory = write_tiny_modelopt(tmp_path / "fp8", tiny_hf_model(MODEL), shards)
    assert read(directory) == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"k_scale": one(0.5)}, r"v_proj\.v_scale: expected a tensor of shape \[\] or \[2\], found none"),
        ({"v_proj.v_scale": one(0.5)}, r"k_proj\.k_scale: expected a tensor of shape \[\] or \[2\], found none"),
        (dict.fromkeys(OTHERS, torch.ones(3)), r"k_scale: expected shape \[2\], found \[3\]"),
        (dict.fromkeys(OTHERS, torch.ones(2, 1)), r"k_scale: expected shape \[2\], found \[2, 1\]"),
        (dict.fromkeys(OTHERS, torch.ones(0)), r"k_scale: expected shape \[2\], found \[0\]"),
        (dict.fromkeys(OTHERS, torch.ones(2).int()), r"k_scale: expected one of .*, found torch\.int32"),
        (dict.fromkeys(OTHERS, torch.tensor([1.0, 0.0])), r"expected a scale that is finite and above 0, found 0\.0"),
        (dict.fromkeys(OTHERS, one(-1.0)), r"expected a scale that is finite and above 0, found -1\.0"),
        (dict.fromkeys(OTHERS, one(torch.nan)), "expected a scale that is finite and above 0, found nan"),
        (dict.fromkeys(OTHERS, torch.tensor(1e300, dtype=torch.float64)), "finite and above 0, found inf"),
    ],
)
def test_damaged_hugging_face(tensors: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    directory = hf_directory(tmp_path / "hf", {name: tensor.clone() for name, tensor in tensors.items()})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: {ATTENTION}\..*{message}"):
        read(directory)


def test_gguf_files_have_none(tmp_path: Path) -> None:
    assert read(write_tiny_gguf(tmp_path / "tiny.gguf", tiny_llama(MODEL))) is None


SCALING = "transformer.layers.0.attention.kv_cache_scaling_factor"


def trtllm_directory(path: Path) -> Path:
    """Two stages of two ranks, each of one layer, with scales of 0.5 and 1."""
    return write_tiny_trtllm(path, tiny_hf_model(MODEL), tp_size=2, pp_size=2, fp8_cache=True)


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: tensor})


def test_of_tensorrt_llm(tmp_path: Path) -> None:
    """One number for keys and values. Newer versions write its reciprocal as well."""
    directory = trtllm_directory(tmp_path / "trtllm")
    edit_rank(directory, 0, put(SCALING.replace("scaling", "rcp_scaling"), torch.tensor([2.0])))
    assert read(directory, layer=0) == [[0.5, 0.5], [0.5, 0.5]]
    assert read(directory, layer=1) == [[1.0, 1.0], [1.0, 1.0]]


def test_tensorrt_llm_without_fp8(tmp_path: Path) -> None:
    assert read(write_tiny_trtllm(tmp_path / "plain", tiny_hf_model(MODEL))) is None
    directory = trtllm_directory(tmp_path / "trtllm")
    edit_config(directory, quantization={"kv_cache_quant_algo": None})
    with pytest.raises(CheckpointError, match="kv_cache_scaling_factor: not a tensor of a plain model"):
        read(directory)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop(SCALING), "scaling_factor: expected a tensor, found none"),
        (put(SCALING, torch.ones(2)), r"scaling_factor: expected shape \[1\], found \[2\]"),
        (put(SCALING, torch.tensor([0.75])), r"scaling_factor: expected the same values as in rank2"),
    ],
)
def test_damaged_tensorrt_llm(edit: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path) -> None:
    directory = trtllm_directory(tmp_path / "trtllm")
    edit_rank(directory, 3, edit)
    with pytest.raises(CheckpointError, match=rf"rank3\.safetensors: .*{message}"):
        read(directory)


def test_tensorrt_llm_scale_that_is_none(tmp_path: Path) -> None:
    directory = trtllm_directory(tmp_path / "trtllm")
    for rank in (0, 1):
        edit_rank(directory, rank, put(SCALING, torch.zeros(1)))
    with pytest.raises(CheckpointError, match=r"rank0\.safetensors: .*scaling_factor: expected a scale that is finite"):
        read(directory, layer=0)


def test_fused_weights(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path / "hf", {"k_scale": one(0.5), "v_scale": torch.tensor([3.0, 4.0])})
    fused = dict(fused_weights(open_checkpoint(str(directory)), torch.bfloat16, "fp8"))
    specs = fused_specs(MODEL, "bfloat16", "fp8")
    assert list(fused) == list(specs)
    assert all(tensor.shape == specs[name].shape for name, tensor in fused.items())
    assert all(tensor.dtype == getattr(torch, specs[name].dtype) for name, tensor in fused.items())
    assert fused["layers.0.kv_scale"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert fused["layers.1.kv_scale"].tolist() == [[0.5, 0.5], [3.0, 4.0]]


def build(directory: Path, engine: Path, *flags: str) -> int:
    return build_engine.main(["--checkpoint_dir", str(directory), "--output_dir", str(engine), *flags])


def test_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = hf_directory(tmp_path / "hf", {"k_scale": one(0.5), "v_scale": one(3.0)})
    engine = tmp_path / "engine"
    assert build(directory, engine, "--kv_cache_dtype", "fp8", "--max_seq_len", "256", "--max_budget", "256") == 0
    printed = capsys.readouterr()
    assert "kv_cache_dtype fp8: the checkpoint has no scales of the KV cache for 1 of 2 layers; they are 1.0" in (
        printed.err
    )
    assert "0.1M parameters" in printed.out
    config = read_engine_config(engine)
    assert config.build.kv_cache_dtype == "fp8"
    weights = load_weights(engine, config, "cpu")
    assert weights["layers.0.kv_scale"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert weights["layers.1.kv_scale"].tolist() == [[0.5, 0.5], [3.0, 3.0]]
    answers = first_answers(LLM(str(engine)).generate(random_prompts((20, 30)), greedy(12)))
    assert [len(answer) for answer in answers] == [12, 12]


def test_no_note_where_there_are_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_tiny_modelopt(tmp_path / "fp8", tiny_hf_model(MODEL))
    assert build(directory, tmp_path / "engine", "--kv_cache_dtype", "fp8") == 0
    assert "no scales" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["modelopt", "tensorrt_llm"])
def test_auto_passes_scales_over(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that could not be used."""
    if kind == "modelopt":
        directory = write_tiny_modelopt(tmp_path / "source", tiny_hf_model(MODEL))
        file = directory / "model.safetensors"
        save_file(load_file(file) | {f"{ATTENTION}.k_proj.k_scale": one(torch.nan)}, file)
    else:
        directory = trtllm_directory(tmp_path / "source")
    assert build(directory, tmp_path / "engine") == 0
    assert "scales" not in capsys.readouterr().err
    config = read_engine_config(tmp_path / "engine")
    assert config.build.kv_cache_dtype == "auto"
    assert not [name for name in load_weights(tmp_path / "engine", config, "cpu") if "kv_scale" in name]


def test_bad_scales_end_the_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = hf_directory(tmp_path / "hf", {"k_scale": one(0.0), "v_scale": one(1.0)})
    assert build(directory, tmp_path / "engine", "--kv_cache_dtype", "fp8") == 2
    assert "k_scale: expected a scale that is finite and above 0, found 0.0" in capsys.readouterr().err
    assert not (tmp_path / "engine").exists()


def test_unknown_kv_cache_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        build(tmp_path, tmp_path / "engine", "--kv_cache_dtype", "int8")
    assert stop.value.code == 2
    assert "--kv_cache_dtype: invalid choice: 'int8'" in capsys.readouterr().err


def test_config_of_an_engine(tmp_path: Path) -> None:
    """Those of before have no kv_cache_dtype."""
    engine = write_tiny_engine(tmp_path / "engine", MODEL, BuildConfig(dtype="bfloat16"), seed=0)
    path = engine / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"kv_cache_dtype": "auto",', ""))
    assert read_engine_config(engine).build.kv_cache_dtype == "auto"
    path.write_text(text.replace('"kv_cache_dtype": "auto"', '"kv_cache_dtype": "e5m2"'))
    with pytest.raises(EngineError, match="kv_cache_dtype: expected one of auto, fp8, found 'e5m2'"):
        read_engine_config(engine)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (None, r"expected a tensor of shape \[2, 2\], found none"),
        (torch.ones(2), r"expected shape \[2, 2\], found \[2\]"),
        (torch.ones(2, 2).half(), r"expected torch\.float32, found torch\.float16"),
        (torch.tensor([[1.0, 1.0], [1.0, -2.0]]), r"expected a finite number above 0, found -2\.0"),
    ],
)
def test_damaged_engine(tensor: Tensor | None, message: str, tmp_path: Path) -> None:
    build_config = BuildConfig(dtype="bfloat16", kv_cache_dtype="fp8")
    engine = write_tiny_engine(tmp_path / "engine", MODEL, build_config, seed=0)
    path = engine / "weights.safetensors"
    tensors = load_file(path) | {"layers.1.kv_scale": tensor}
    save_file({name: each for name, each in tensors.items() if each is not None}, path)
    with pytest.raises(EngineError, match=rf"weights\.safetensors: layers\.1\.kv_scale: {message}"):
        load_weights(engine, read_engine_config(engine), "cpu")


def test_scales_of_another_engine(tmp_path: Path) -> None:
    engine = write_tiny_engine(tmp_path / "engine", MODEL, BuildConfig(dtype="bfloat16"), seed=0)
    path = engine / "weights.safetensors"
    save_file(load_file(path) | {"layers.0.kv_scale": torch.ones(2, 2)}, path)
    with pytest.raises(EngineError, match=r"layers\.0\.kv_scale: unknown tensor"):
        load_weights(engine, read_engine_config(engine), "cpu")
