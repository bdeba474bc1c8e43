"""Hugging Face directories in FP8, written as ModelOpt exports them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tiny_models import fp8_of, write_tiny_hf_checkpoint

# Products of one input, in the order in which an engine stacks them.
GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
_NOT_QUANTIZED = ["lm_head", "model.embed_tokens"]
HF_QUANT_CONFIG: dict[str, Any] = {
    "producer": {"name": "modelopt", "version": "0.47.0"},
    "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": _NOT_QUANTIZED},
}
_FLOAT8 = {"dynamic": False, "num_bits": 8, "type": "float"}
QUANTIZATION_CONFIG: dict[str, Any] = {
    "config_groups": {"group_0": {"input_activations": _FLOAT8, "weights": _FLOAT8, "targets": ["Linear"]}},
    "ignore": _NOT_QUANTIZED,
    "quant_algo": "FP8",
    "kv_cache_scheme": _FLOAT8,
    "producer": {"name": "modelopt", "version": "0.47.0"},
    "quant_method": "modelopt",
}


def write_tiny_modelopt(directory: Path, hf_model: PreTrainedModel, shards: int = 1) -> Path:
    """hf_model in FP8: every product has scales of its own, for inputs up to about 7. Returns `directory`."""
    write_tiny_hf_checkpoint(directory, hf_model, shards)
    for path in directory.glob("*.safetensors"):
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(path).items():
            tensors |= _exported(name, tensor)
        save_file(tensors, path)
        _index(directory, path.name, tensors)
    edit_json(directory / "config.json", quantization_config=QUANTIZATION_CONFIG)
    (directory / "hf_quant_config.json").write_text(json.dumps(HF_QUANT_CONFIG))
    return directory


def edit_json(path: Path, **values: object) -> None:
    """Set keys of a JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _exported(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    module = name.removesuffix(".weight")
    products = [product for group in GROUPS for product in group]
    number = next((number for number, product in enumerate(products) if name.endswith(f"{product}.weight")), None)
    if number is None:
        return {name: tensor}
    weight, scale = fp8_of(tensor, headroom=1 + (5 * number) % 7 / 4)
    scales = {f"{module}.weight_scale": scale, f"{module}.input_scale": torch.tensor((1 + 0.01 * number) / 64)}
    if module.endswith(("k_proj", "v_proj")):
        scales[f"{module}.{module[-6]}_scale"] = torch.tensor(0.5)  # of an FP8 KV cache
    return {name: weight, **scales}


def _index(directory: Path, file: str, names: dict[str, torch.Tensor]) -> None:
    path = directory / "model.safetensors.index.json"
    if path.exists():
        index = json.loads(path.read_text())
        edit_json(path, weight_map=index["weight_map"] | dict.fromkeys(names, file))
