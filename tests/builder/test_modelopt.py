"""Checkpoints in FP8 as ModelOpt exports them: what is read, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsespec.builder.checkpoint import open_checkpoint
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.fuse import fused_weights
from tiny_modelopt import HF_QUANT_CONFIG, QUANTIZATION_CONFIG, edit_json, write_tiny_modelopt
from tiny_models import tiny_hf_model, tiny_model_config, write_tiny_hf_checkpoint

MODEL = tiny_model_config(num_layers=2)
Q_PROJ, INPUT_SCALE = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj.input_scale"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_tiny_modelopt(tmp_path / "fp8", tiny_hf_model(MODEL).to(torch.bfloat16))


def read_all(directory: Path) -> None:
    list(fused_weights(open_checkpoint(str(directory)), torch.bfloat16))


def write_configs(directory: Path, in_config: object, beside: object) -> None:
    """config.json's section and hf_quant_config.json; None for neither."""
    edit_json(directory / "config.json", quantization_config=in_config)
    path = directory / "hf_quant_config.json"
    if beside is None:
        path.unlink()
    else:
        path.write_text(json.dumps(beside))


@pytest.mark.parametrize("shards", [1, 2])
def test_tensors_are_as_stored(tmp_path: Path, shards: int) -> None:
    directory = write_tiny_modelopt(tmp_path / "fp8", tiny_hf_model(MODEL).to(torch.bfloat16), shards)
    stored: dict[str, torch.Tensor] = {}
    for path in directory.glob("*.safetensors"):
        stored |= load_file(path)
    checkpoint = open_checkpoint(str(directory))
    assert checkpoint.model == replace(MODEL, quantization="fp8")
    assert checkpoint.dtype == "bfloat16"
    weight = checkpoint.tensor(f"{Q_PROJ}.weight", (64, 64))
    assert weight.dtype == torch.float8_e4m3fn
    assert torch.equal(weight.view(torch.uint8), stored[f"{Q_PROJ}.weight"].view(torch.uint8))
    for name in (f"{Q_PROJ}.weight_scale", INPUT_SCALE):
        scale = checkpoint.tensor(name, ())
        assert (scale.dtype, scale.shape) == (torch.float32, ())
        assert scale == stored[name]
    assert checkpoint.tensor("lm_head.weight", (128, 64)).dtype == torch.bfloat16


def changed(document: dict[str, Any], **values: object) -> dict[str, Any]:
    return {key: value for key, value in (document | values).items() if value is not None}


# As versions of ModelOpt wrote them: 0.43, 0.33, and what its documentation showed before.
ONLY_THE_HEAD = changed(QUANTIZATION_CONFIG, ignore=["lm_head"])
GROUP = QUANTIZATION_CONFIG["config_groups"]["group_0"]
WITH_A_LIBRARY = changed(
    ONLY_THE_HEAD,
    config_groups={"group_0": changed(GROUP, targets=None)},
    kv_cache_scheme="FP8",
    quant_method=None,
    quant_library="modelopt",
)
OLD_FLAT = changed(WITH_A_LIBRARY, config_groups=None)
NO_KV_CACHE = changed(HF_QUANT_CONFIG, quantization={"quant_algo": "FP8", "kv_cache_quant_algo": None})


@pytest.mark.parametrize(
    ("in_config", "beside"),
    [
        (QUANTIZATION_CONFIG, None),
        (ONLY_THE_HEAD, None),
        (WITH_A_LIBRARY, HF_QUANT_CONFIG),
        (OLD_FLAT, None),
        (changed(OLD_FLAT, quant_library=None), None),
        (HF_QUANT_CONFIG, None),
        (None, HF_QUANT_CONFIG),
        (None, NO_KV_CACHE),
        (QUANTIZATION_CONFIG, NO_KV_CACHE),
        (changed(QUANTIZATION_CONFIG, kv_cache_scheme=None), NO_KV_CACHE),
    ],
)
def test_configs_that_say_fp8(directory: Path, in_config: object, beside: object) -> None:
    write_configs(directory, in_config, beside)
    assert open_checkpoint(str(directory)).model.quantization == "fp8"
    read_all(directory)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quant_method": "awq"}, "quant_method: only 'modelopt' is supported, found 'awq'"),
        ({"quant_method": 8}, "quant_method: expected str, found 8"),
        ({"quant_method": None, "producer": {"name": "other"}}, "quant_method: only 'modelopt' .* found 'other'"),
        ({"quant_method": None, "producer": "modelopt"}, "producer: expected an object, found 'modelopt'"),
        ({"quant_algo": "NVFP4"}, "quant_algo: only 'FP8' is supported, found 'NVFP4'"),
        ({"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, "quant_algo: only 'FP8' .* found 'FP8_PER_CHANNEL_PER_TOKEN'"),
        ({"quant_algo": None}, "quant_algo: only 'FP8' is supported, found None"),
        ({"quant_algo": ["FP8"]}, r"quant_algo: only 'FP8' is supported, found \['FP8'\]"),
        ({"kv_cache_scheme": "NVFP4"}, "kv_cache_scheme: only 'FP8' is supported, found 'NVFP4'"),
        ({"kv_cache_scheme": {"num_bits": 4}}, r"kv_cache_scheme: only 'FP8' is supported, found \{'num_bits': 4\}"),
        (
            {"ignore": ["lm_head", "model.layers.0*"]},
            r"ignore: only lm_head.* are supported, found 'model\.layers\.0\*'",
        ),
        ({"ignore": "lm_head"}, "ignore: expected a list, found 'lm_head'"),
        (
            {"ignore": [["lm_head"]]},
            r"ignore: only lm_head.* are supported, found \['lm_head'\]",
        ),
        ({"exclude_modules": [5]}, "exclude_modules: only lm_head.* are supported, found 5"),
        ({"quantization": []}, r"quantization: expected an object, found \[\]"),
    ],
)
def test_other_schemes_are_refused(directory: Path, values: dict[str, object], message: str) -> None:
    write_configs(directory, changed(QUANTIZATION_CONFIG, **values), HF_QUANT_CONFIG)
    with pytest.raises(CheckpointError, match=rf"config\.json: quantization_config: {message}"):
        open_checkpoint(str(directory))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(HF_QUANT_CONFIG | {"quantization": {"quant_algo": "W4A16_AWQ"}}), "quant_algo: .* 'W4A16_AWQ'"),
        (json.dumps(HF_QUANT_CONFIG | {"producer": {}}), "quant_method: only 'modelopt' is supported, found ''"),
        ("{}", "quant_method: only 'modelopt' is supported, found ''"),
        ("{", "expected JSON"),
    ],
)
def test_config_beside_another_scheme(directory: Path, content: str, message: str) -> None:
    """Both files count, where both are there."""
    (directory / "hf_quant_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"hf_quant_config\.json: .*{message}"):
        open_checkpoint(str(directory))


def test_quantised_tensors_without_a_config(directory: Path) -> None:
    write_configs(directory, None, None)
    with pytest.raises(CheckpointError, match=r"q_proj\.weight: expected one of .* found torch\.float8_e4m3fn"):
        read_all(directory)


def test_config_without_quantised_tensors(tmp_path: Path) -> None:
    directory = write_tiny_hf_checkpoint(tmp_path / "hf", tiny_hf_model(MODEL))
    edit_json(directory / "config.json", quantization_config=QUANTIZATION_CONFIG)
    with pytest.raises(CheckpointError, match=r"q_proj\.weight_scale: expected a tensor of shape \[\], found none"):
        read_all(directory)


def edit_tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edited(path: Path) -> None:
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)

    return edited


def put(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    return edit_tensors(lambda tensors: tensors.update({name: tensor}))


def scale(value: float) -> Callable[[Path], None]:
    return put(INPUT_SCALE, torch.tensor(value))


def test_scales_with_an_axis(directory: Path) -> None:
    """Not of the versions that were tried, but of files of others."""
    put(INPUT_SCALE, torch.tensor([0.5]))(directory / "model.safetensors")
    found = open_checkpoint(str(directory)).tensor(INPUT_SCALE, ())
    assert (found.shape, float(found)) == ((), 0.5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            edit_tensors(lambda tensors: tensors.pop(INPUT_SCALE)),
            r"input_scale: expected a tensor of shape \[\], found",
        ),
        (edit_tensors(lambda tensors: tensors.pop(f"{Q_PROJ}.weight_scale")), "weight_scale: expected .* found none"),
        (put(f"{Q_PROJ}.weight", torch.ones(64, 64).bfloat16()), "expected torch.float8_e4m3fn, found torch.bfloat16"),
        (put(f"{Q_PROJ}.weight", torch.ones(64, 64).to(torch.float8_e5m2)), "found torch.float8_e5m2"),
        (put(f"{Q_PROJ}.weight", torch.ones(32, 64).to(torch.float8_e4m3fn)), r"expected shape \[64, 64\], found \[32"),
        (put(f"{Q_PROJ}.weight_scale", torch.ones(64)), r"weight_scale: expected shape \[\], found \[64\]"),
        (put(f"{Q_PROJ}.weight_scale", torch.ones(())[None, None]), r"expected shape \[\], found \[1, 1\]"),
        (put(f"{Q_PROJ}.weight_scale", torch.ones(0)), r"weight_scale: expected shape \[\], found \[0\]"),
        (
            put(f"{Q_PROJ}.weight_scale", torch.ones(()).half()),
            "weight_scale: expected torch.float32, found torch.float16",
        ),
        (put(f"{Q_PROJ}.weight_scale", torch.ones((), dtype=torch.int32)), "expected torch.float32, found torch.int32"),
        (scale(0.0), r"input_scale: expected a scale that is finite and above 0, found 0\.0"),
        (scale(-0.5), r"expected a scale that is finite and above 0, found -0\.5"),
        (scale(float("nan")), "expected a scale that is finite and above 0, found nan"),
        (scale(float("inf")), "expected a scale that is finite and above 0, found inf"),
        (
            put("lm_head.weight", torch.ones(128, 64).to(torch.float8_e4m3fn)),
            r"lm_head\.weight: expected one of .* found torch\.float8",
        ),
        (
            put("model.norm.weight", torch.ones(64).to(torch.float8_e4m3fn)),
            r"norm\.weight: expected one of .* found torch\.float8",
        ),
    ],
)
def test_damaged_tensors(directory: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{message}"):
        read_all(directory)
