"""FP8 from checkpoint to tokens, against numpy's arithmetic and a transformers model that rounds as FP8 does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from executor_driver import Driver, reference_logits, relative_error
from fp8_numbers import nearest_fp8
from sparsespec.builder import build_engine
from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.checkpoint import open_checkpoint
from sparsespec.builder.engine_dir import EngineConfig, load_weights, read_engine_config
from sparsespec.builder.errors import CheckpointError, EngineError
from sparsespec.builder.fuse import fused_weights
from sparsespec.builder.fused_weights import fused_specs
from sparsespec.builder.model_config import Family
from sparsespec.builder.ops import Fp8Weight
from sparsespec.plugins.pillar_attention.reference import to_fp8
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.fp8 import exact_product, linear_fp8
from sparsespec.runtime.llm import LLM
from tiny_llm import DraftCounts, first_answers, greedy, random_prompts
from tiny_modelopt import GROUPS, write_tiny_modelopt
from tiny_models import fp8_of, row_scales, tiny_hf_model, tiny_model_config, write_tiny_engine

MODEL = tiny_model_config(num_layers=2)
FP8_MODEL = replace(MODEL, quantization="fp8")
BUILD = BuildConfig(dtype="bfloat16")
PARTS = [part for group in GROUPS for part in group]


def same_bits(found: Tensor, expected: Tensor) -> bool:
    return found.dtype == expected.dtype and torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def numbers(shape: tuple[int, ...], seed: int, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_numbers_of_the_format() -> None:
    """Every code is its own nearest number, and torch rounds as the definition says: ties, subnormals, cut-off."""
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (codes[1:] + codes[:-1]) / 2
    x = torch.cat((codes, ties, numbers((10_000,), seed=0, spread=100.0), torch.tensor([449.0, 1e30, 1e-30])))
    x = torch.cat((x, -x))
    assert np.array_equal(nearest_fp8(x.numpy()), to_fp8(x, torch.tensor(1.0)).float().numpy())
    assert np.array_equal(nearest_fp8(codes.numpy()), codes.numpy())


def test_input_is_divided_cut_off_and_rounded() -> None:
    x, scale = numbers((300, 64), seed=1, spread=9.0), torch.tensor(1 / 64 + 1e-4)
    rounded = to_fp8(x, scale)
    assert rounded.dtype == torch.float8_e4m3fn
    assert np.array_equal(rounded.float().numpy(), nearest_fp8(x.numpy() / scale.numpy()))
    assert rounded.float().abs().max() == 448


@pytest.mark.parametrize("scaled_rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_product(dtype: torch.dtype, scaled_rows: bool) -> None:
    """In the type of x, also where numbers without their scales would be too large for it."""
    weight, weight_scale = fp8_of(numbers((48, 80), seed=2))
    row_scale = row_scales(48) if scaled_rows else None
    fp8 = Fp8Weight(weight, weight_scale, torch.tensor(1 / 64), row_scale)
    x, bias = numbers((5, 80), seed=3).to(dtype), numbers((48,), seed=4).to(dtype)
    operand = nearest_fp8(x.float().numpy() * 64).astype(np.float64) / 64
    product = torch.from_numpy(operand) @ (weight.double() * weight_scale.double()).T
    if row_scale is not None:
        product *= row_scale.double()
    tolerance = {torch.float64: 1e-7, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    for each, expected in ((None, product), (bias, product + bias.double())):
        found = linear_fp8(x, fp8, each)
        assert found.dtype == dtype
        assert relative_error(found.double(), expected) < tolerance


def test_parts_of_one_scale_are_not_scaled_again(tmp_path: Path) -> None:
    directory = write_tiny_modelopt(tmp_path / "fp8", tiny_hf_model(MODEL))
    edit_scales(directory, dict.fromkeys(PARTS, 0.0123))
    fused = dict(fused_weights(open_checkpoint(str(directory)), torch.float32))
    scales = [tensor for name, tensor in fused.items() if name.endswith(".row_scale")]
    assert len(scales) == 4
    assert all(scale.unique().tolist() == [1.0] for scale in scales)


def test_scales_that_are_too_far_apart(tmp_path: Path) -> None:
    """float32 holds both, and not their quotient."""
    directory = write_tiny_modelopt(tmp_path / "fp8", tiny_hf_model(MODEL))
    edit_scales(directory, {"mlp.gate_proj": 1e10, "mlp.up_proj": 1e-30})
    message = r"layers\.0\.mlp\.gate_proj\.weight_scale: expected at most 3\.4e\+38 .*, 1\.0e-30, found 1\.0e\+10"
    with pytest.raises(CheckpointError, match=message):
        list(fused_weights(open_checkpoint(str(directory)), torch.float32))


def edit_scales(directory: Path, scales: Mapping[str, float]) -> None:
    """Of products in every layer, by name."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name, scale in scales.items():
        layers = [f"model.layers.{layer}.{name}.weight_scale" for layer in range(MODEL.num_layers)]
        tensors |= {each: torch.tensor(scale) for each in layers}
    save_file(tensors, path)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("family", get_args(Family))
def test_fused_weights(family: Family, shards: int, tmp_path: Path) -> None:
    """Every part is kept bit for bit; its rows have what the smallest scale is to be multiplied by."""
    model = replace(MODEL, family=family)
    directory = write_tiny_modelopt(tmp_path / "fp8", tiny_hf_model(model).to(torch.bfloat16), shards)
    checkpoint = open_checkpoint(str(directory))
    stored = all_tensors(directory)
    fused = dict(fused_weights(checkpoint, torch.bfloat16))
    specs = fused_specs(replace(model, quantization="fp8"), "bfloat16")
    assert list(fused) == list(specs)
    assert all(tensor.shape == specs[name].shape for name, tensor in fused.items())
    assert all(tensor.dtype == getattr(torch, specs[name].dtype) for name, tensor in fused.items())
    for group, name in zip(GROUPS, ("qkv", "o_proj", "gate_up", "down_proj"), strict=True):
        check_product([f"model.layers.1.{part}" for part in group], f"layers.1.{name}", stored, fused)
    assert torch.equal(fused["lm_head"], stored["lm_head.weight"])


def check_product(parts: list[str], name: str, stored: Mapping[str, Tensor], fused: Mapping[str, Tensor]) -> None:
    scales = {part: stored[f"{part}.weight_scale"] for part in parts}
    smallest = min(scales.values())
    assert fused[f"{name}.weight_scale"] == smallest
    assert fused[f"{name}.input_scale"] == max(stored[f"{part}.input_scale"] for part in parts)
    assert same_bits(fused[name], torch.cat([stored[f"{part}.weight"] for part in parts]))
    if len(parts) == 1:
        assert f"{name}.row_scale" not in fused
        return
    rows = fused[f"{name}.row_scale"].split([len(stored[f"{part}.weight"]) for part in parts])
    for scale, found in zip(scales.values(), rows, strict=True):
        assert found.unique().tolist() == [float(scale / smallest)]
    assert [float(found[0]) for found in rows].count(1.0) == 1  # every part has its own


def all_tensors(directory: Path) -> dict[str, Tensor]:
    """Scales as numbers without an axis."""
    tensors: dict[str, Tensor] = {}
    for path in directory.glob("*.safetensors"):
        tensors |= load_file(path)
    return {name: tensor.reshape(()) if tensor.numel() == 1 else tensor for name, tensor in tensors.items()}


def test_engine_reads_back(tmp_path: Path) -> None:
    engine = write_tiny_engine(tmp_path / "engine", FP8_MODEL, BUILD, seed=1)
    config = read_engine_config(engine)
    assert config == EngineConfig(FP8_MODEL, BUILD)
    weights = load_weights(engine, config, "cpu")
    stored = load_file(engine / "weights.safetensors")
    assert list(weights) == list(fused_specs(FP8_MODEL, "bfloat16"))
    assert all(same_bits(weights[name].reshape(-1), stored[name].reshape(-1)) for name in weights)
    assert weights["layers.1.qkv"].dtype == torch.float8_e4m3fn
    assert weights["layers.1.qkv.input_scale"].shape == ()


def test_engines_of_before_have_no_quantization(tmp_path: Path) -> None:
    engine = write_tiny_engine(tmp_path / "engine", MODEL, BUILD, seed=1)
    path = engine / "config.json"
    document = json.loads(path.read_text())
    del document["model"]["quantization"]
    path.write_text(json.dumps(document))
    assert read_engine_config(engine) == EngineConfig(MODEL, BUILD)


def ends_with(value: float) -> Tensor:
    """Scales of 128 rows, good ones but for the last."""
    return torch.cat((torch.ones(127), torch.tensor([value])))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("layers.0.qkv", torch.ones(128, 64).bfloat16(), "expected torch.float8_e4m3fn, found torch.bfloat16"),
        ("layers.0.qkv.weight_scale", torch.ones(1), r"expected shape \[\], found \[1\]"),
        ("layers.1.down_proj.input_scale", torch.tensor(torch.nan), "expected a finite number above 0, found nan"),
        ("layers.0.gate_up.weight_scale", torch.tensor(0.0), r"expected a finite number above 0, found 0\.0"),
        ("layers.1.qkv.row_scale", ends_with(-0.5), r"expected a finite number above 0, found -0\.5"),
        ("layers.0.qkv.row_scale", ends_with(torch.inf), "expected a finite number above 0, found inf"),
        ("layers.0.qkv.row_scale", torch.ones(()), r"expected shape \[128\], found \[\]"),
        ("layers.0.qkv.row_scale", None, r"expected a tensor of shape \[128\], found none"),
        ("layers.0.o_proj.row_scale", torch.ones(64), "unknown tensor; config.json describes a model without it"),
        ("layers.0.qkv.input_scale", torch.ones(()).half(), "expected torch.float32, found torch.float16"),
        ("layers.1.down_proj.input_scale", None, r"expected a tensor of shape \[\], found none"),
        ("lm_head", torch.ones(128, 64).to(torch.float8_e4m3fn), "expected torch.bfloat16, found torch.float8_e4m3fn"),
    ],
)
def test_damaged_engine(name: str, tensor: Tensor | None, message: str, tmp_path: Path) -> None:
    engine = write_tiny_engine(tmp_path / "engine", FP8_MODEL, BUILD, seed=1)
    path = engine / "weights.safetensors"
    tensors = load_file(path)
    save_file({key: value for key, value in (tensors | {name: tensor}).items() if value is not None}, path)
    with pytest.raises(EngineError, match=rf"weights\.safetensors: {name}: {message}"):
        load_weights(engine, read_engine_config(engine), "cpu")


class Fp8Linear(nn.Module):
    """A linear layer of dequantised weights that rounds its input."""

    def __init__(self, weight: Tensor, bias: Tensor | None, input_scale: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.input_scale = weight, bias, input_scale

    def forward(self, x: Tensor) -> Tensor:
        rounded = torch.from_numpy(nearest_fp8((x / self.input_scale).numpy()))
        return nn.functional.linear(rounded * self.input_scale, self.weight, self.bias)


def rounding_model(hf_model: PreTrainedModel, stored: Mapping[str, Tensor]) -> PreTrainedModel:
    """transformers' model with every product of the checkpoint in the place of its own."""
    for layer, block in enumerate(hf_model.model.layers):
        for group in GROUPS:
            names = {part: f"model.layers.{layer}.{part}" for part in group}
            input_scale = max(stored[f"{name}.input_scale"] for name in names.values())
            for part, name in names.items():
                weight = stored[f"{name}.weight"].float() * stored[f"{name}.weight_scale"]
                bias = block.get_submodule(part).bias
                block.set_submodule(part, Fp8Linear(weight, bias, input_scale))
    return hf_model


@pytest.mark.parametrize("family", get_args(Family))
def test_logits_equal_those_of_a_model_that_rounds(family: Family, tmp_path: Path) -> None:
    """An error in fp32 can move an input over the border between two numbers of FP8, and with it the rows that see it.

    Others equal, and nowhere is the error near to what rounding changes.
    """
    hf_model = tiny_hf_model(replace(MODEL, family=family))
    directory = write_tiny_modelopt(tmp_path / "fp8", hf_model)
    checkpoint = open_checkpoint(str(directory))
    prompts = [list(prompt) for prompt in random_prompts((61, 35))]
    driver = Driver(checkpoint.model, dict(fused_weights(checkpoint, torch.float32)), "float32", prompts)
    found = torch.cat(list(driver.prefill({0: 61, 1: 35}).values()))
    unrounded = torch.cat([reference_logits(hf_model, prompt) for prompt in prompts])
    rounding = rounding_model(hf_model, all_tensors(directory))
    expected = torch.cat([reference_logits(rounding, prompt) for prompt in prompts])
    assert min(relative_error(*rows) for rows in zip(found[:4], expected[:4], strict=True)) < 1e-5
    assert relative_error(found, expected) < 5e-2
    assert relative_error(found, unrounded) > 1e-1


def build(directory: Path, engine: Path, dtype: str) -> None:
    flags = ["--max_seq_len", "256", "--max_budget", "256", "--page_size", "8", "--dtype", dtype]
    assert build_engine.main(["--checkpoint_dir", str(directory), "--output_dir", str(engine), *flags]) == 0


def test_speculation_decodes_what_plain_decoding_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the checkpoint on; some drafts are accepted, some are not. fp64, so that nothing moves over a border."""
    directory = write_tiny_modelopt(tmp_path / "fp8", tiny_hf_model(MODEL).to(torch.bfloat16))
    build(directory, tmp_path / "engine", "float64")
    assert "0.1M parameters" in capsys.readouterr().out
    prompts = random_prompts((90, 41, 7))
    llm = LLM(str(tmp_path / "engine"), SpeculationConfig(k=4, min_budget=8, ratio=0.1))
    plain = llm.generate(prompts, greedy(60, speculate=False))
    speculative = llm.generate(prompts, greedy(60))
    assert first_answers(speculative) == first_answers(plain)
    counts = DraftCounts.of(speculative)
    print(counts)
    assert counts.accepted > 0
    assert counts.rejected > 0


@pytest.mark.parametrize("dtype", ["auto", "float16", "float32"])
def test_every_type_decodes(dtype: str, tmp_path: Path) -> None:
    """`auto` is the checkpoint's bfloat16: activations, KV cache, and what is not quantised."""
    directory = write_tiny_modelopt(tmp_path / "fp8", tiny_hf_model(MODEL).to(torch.bfloat16))
    build(directory, tmp_path / "engine", dtype)
    config = read_engine_config(tmp_path / "engine")
    assert config.build.dtype == ("bfloat16" if dtype == "auto" else dtype)
    assert config.model.quantization == "fp8"
    answers = first_answers(LLM(str(tmp_path / "engine")).generate(random_prompts((20, 30)), greedy(12)))
    assert [len(answer) for answer in answers] == [12, 12]


def test_product_of_the_reference_is_exact() -> None:
    """Sums of numbers that fp32 holds: no order of theirs rounds."""
    weight = torch.full((16, 4096), 448.0).to(torch.float8_e4m3fn)
    fp8 = Fp8Weight(weight, torch.tensor(2.0**-20), torch.tensor(2.0**-3), None)
    x = torch.full((3, 4096), 448.0).to(torch.float8_e4m3fn)
    assert exact_product(x, fp8, torch.float16).unique().tolist() == [448.0 * 448 * 4096 / 2**23]


def test_product_of_the_reference_is_rounded_once() -> None:
    """98 * 2^10 is beyond float16, and 98 * 2^10 / 3 is none of its numbers."""
    weight = torch.full((2, 16), 448.0).to(torch.float8_e4m3fn)
    fp8 = Fp8Weight(weight, torch.tensor(1.0), torch.tensor(1 / 32), torch.tensor([1 / 3, 1 / 4]))
    found = exact_product(torch.full((1, 16), 448.0).to(torch.float8_e4m3fn), fp8, torch.float16)
    assert found.tolist() == [torch.tensor([98 * 2**10 / 3, 98 * 2**10 / 4]).half().tolist()]
