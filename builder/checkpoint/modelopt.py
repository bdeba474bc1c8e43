"""Hugging Face directories that ModelOpt quantised: what their configs say of it, and their scales."""

from __future__ import annotations

from pathlib import Path

import torch

from sparsespec.builder.checkpoint.base import check_scale
from sparsespec.builder.checkpoint.hf_json import JsonFile
from sparsespec.builder.checkpoint.safetensors_file import SafetensorsFile
from sparsespec.builder.config_io import shown
from sparsespec.builder.model_config import Quantization

_CONFIG_FILE = "hf_quant_config.json"
# What is never quantised here. ModelOpt has two words for what it left out.
_EXCLUDED = ("lm_head", "model.embed_tokens")
_EXCLUDING_KEYS = ("exclude_modules", "ignore")
# It has two for the KV cache as well, and one of them was later given more to say.
_KV_CACHE_KEYS = ("kv_cache_quant_algo", "kv_cache_scheme")
_KV_CACHES = (None, "FP8", {"dynamic": False, "num_bits": 8, "type": "float"})


def read_quantization(directory: Path, config: JsonFile) -> Quantization | None:
    """What config.json's `quantization_config` and hf_quant_config.json say; None where there is neither.

    Raises CheckpointError for all but FP8 of weights and inputs, as ModelOpt exports it.
    """
    sections = []
    if config.values.get("quantization_config") is not None:
        sections.append(config.section("quantization_config"))
    if (directory / _CONFIG_FILE).exists():
        sections.append(JsonFile.read(directory / _CONFIG_FILE))
    for section in sections:
        _check_maker(section)
        # hf_quant_config.json and old config.json nest it.
        _check_scheme(section.section("quantization") if "quantization" in section.values else section)
    return "fp8" if sections else None


def read_scale(file: SafetensorsFile, name: str) -> torch.Tensor:
    """A scale: float32, of shape (). Raises CheckpointError where it is not finite and above 0."""
    scale = file.scalar(name)
    check_scale(file.path, name, scale)
    return scale


def _check_maker(section: JsonFile) -> None:
    producer = section.section("producer").get("name", "")
    maker = section.get("quant_method", section.get("quant_library", producer))
    if maker != "modelopt":
        raise section.error(f"quant_method: only 'modelopt' is supported, found {shown(maker)}")


def _check_scheme(section: JsonFile) -> None:
    algo = section.values.get("quant_algo")
    if algo != "FP8":
        raise section.error(f"quant_algo: only 'FP8' is supported, found {shown(algo)}")
    for key in _KV_CACHE_KEYS:
        if section.values.get(key) not in _KV_CACHES:
            raise section.error(f"{key}: only 'FP8' is supported, found {shown(section.values[key])}")
    for key in _EXCLUDING_KEYS:
        _check_excluded(section, key)


def _check_excluded(section: JsonFile, key: str) -> None:
    excluded = section.values.get(key)
    if excluded is None:
        return
    if not isinstance(excluded, list):
        raise section.error(f"{key}: expected a list, found {shown(excluded)}")
    for name in excluded:
        if name not in _EXCLUDED:
            raise section.error(f"{key}: only {' and '.join(_EXCLUDED)} are supported, found {shown(name)}")
