"""The engine directory: config.json, weights.safetensors, the tokenizer, and TensorRT's engines where it has them.

How it is written, read and checked.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sparsespec.builder.build_config import BuildConfig, DType
from sparsespec.builder.config_io import from_mapping, shown
from sparsespec.builder.errors import EngineError, InputError, one_line
from sparsespec.builder.fused_weights import WeightSpec, fused_specs, is_scale
from sparsespec.builder.input_files import check_readable, read_json_object
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.staging import publish, staged
from sparsespec.builder.trt.config import TensorRTBuild
from sparsespec.builder.trt.engine_io import EngineKind

FORMAT = "sparsespec-engine"
VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
# TensorRT's, and what its inspector says of them.
ENGINE_FILES: dict[EngineKind, str] = {"draft": "draft.engine", "verify": "verify.engine"}
LAYER_FILES: dict[EngineKind, str] = {"draft": "draft.layers.json", "verify": "verify.layers.json"}
# All that transformers 4 and 5 may write for a tokenizer.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates",
    "additional_chat_templates/*.jinja",
)
_ALL_FILES = (CONFIG_FILE, WEIGHTS_FILE, *ENGINE_FILES.values(), *LAYER_FILES.values(), *_TOKENIZER_FILES)
TORCH_DTYPES: dict[DType, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class EngineConfig:
    """Contents of an engine's config.json; `build.dtype` is a concrete type, never `auto`."""

    model: ModelConfig
    build: BuildConfig
    tensorrt: TensorRTBuild | None = None  # None where only the torch executor runs it

    def __post_init__(self) -> None:
        if self.build.dtype not in TORCH_DTYPES:
            raise InputError(f"build: dtype: expected one of {', '.join(TORCH_DTYPES)}, found {self.build.dtype!r}")


def write_engine(
    output_dir: Path,
    config: EngineConfig,
    weights: Iterable[tuple[str, torch.Tensor]],
    write_others: Callable[[Path], None],
    force: bool,
) -> None:
    """Write an engine as one atomic step: `output_dir` holds either a complete engine or what it held before.

    `write_others` adds the tokenizer, and engines. `weights` yields every tensor of `fused_specs` in its type. A
    non-empty `output_dir` is replaced only with `force`, only when it holds an engine and nothing else, and only once
    the new engine is complete and on disk. Raises EngineError when `output_dir` may not be replaced or cannot be
    written.
    """
    # Not resolve(): Python before 3.13 raises a RuntimeError there for a loop of links.
    target = Path(os.path.realpath(output_dir))
    try:
        _check_replaceable(target, force)
        target.parent.mkdir(parents=True, exist_ok=True)
        with staged(target) as stage:
            _write_files(stage.content, config, weights, write_others)
            _check_replaceable(target, force)
            publish(stage, target)
    except (OSError, SafetensorError) as error:
        raise EngineError(f"{target}: cannot write the engine: {error}") from error


def read_engine_config(engine_dir: Path) -> EngineConfig:
    """Read config.json. Raises EngineError when it is missing, damaged, foreign or newer than this code."""
    path = engine_dir / CONFIG_FILE
    document = _read_document(path)
    if document.get("format") != FORMAT:
        raise EngineError(f"{path}: not an engine: expected format {FORMAT!r}, found {shown(document.get('format'))}")
    if type(document.get("version")) is not int or document["version"] != VERSION:
        raise EngineError(
            f"{path}: expected engine version {VERSION}, found {shown(document.get('version'))}; "
            "rebuild the engine or use the sparsespec that built it"
        )
    try:
        return _parse_config(document)
    except InputError as error:
        raise EngineError(f"{path}: {error}") from error


def load_weights(engine_dir: Path, config: EngineConfig, device: str) -> dict[str, torch.Tensor]:
    """Load every tensor of `fused_specs` onto `device`, in its type.

    Raises EngineError naming the file, and the tensor with what was expected and found, when anything differs;
    InputError for a device that this machine does not have.
    """
    torch_device = _usable_device(device)
    path = engine_dir / WEIGHTS_FILE
    specs = _weight_specs(config)
    if not path.is_file():
        raise EngineError(f"{path}: missing; expected a safetensors file with {len(specs)} tensors")
    try:
        check_readable(path)
        with safe_open(path, framework="pt", device=torch_device) as reader:
            _check_names(path, dict.fromkeys(reader.keys()), specs)
            weights = {name: reader.get_tensor(name) for name in specs}
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error}") from error
    except SafetensorError as error:
        payload = sum(spec.num_bytes for spec in specs.values())
        raise EngineError(
            f"{path}: damaged weights: expected a header and {payload} bytes of tensors, "
            f"found a file of {path.stat().st_size} bytes ({error!s:.200})"
        ) from error
    for name, spec in specs.items():
        _check_tensor(path, name, weights[name], spec)
    _check_scales(path, {name: weights[name] for name in specs if is_scale(name)})
    return weights


def _weight_specs(config: EngineConfig) -> dict[str, WeightSpec]:
    return fused_specs(config.model, config.build.dtype, config.build.kv_cache_dtype)


def _write_files(
    directory: Path,
    config: EngineConfig,
    weights: Iterable[tuple[str, torch.Tensor]],
    write_others: Callable[[Path], None],
) -> None:
    write_others(directory)
    document = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(config)}
    (directory / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    tensors = dict(weights)
    specs = _weight_specs(config)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        name: spec.shape for name, spec in specs.items()
    }
    save_file(tensors, directory / WEIGHTS_FILE)
    # safetensors keeps its files to their owner, but a server often runs as another user than the build.
    shutil.copymode(directory / CONFIG_FILE, directory / WEIGHTS_FILE)


def _check_replaceable(target: Path, force: bool) -> None:
    """A forced build deletes what it replaces, so it must not be pointed at anything but an engine."""
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise EngineError(f"{target}: expected a directory or nothing, found a file")
    if not any(target.iterdir()):
        return
    if not force:
        raise EngineError(f"{target}: exists and is not empty; choose another output_dir or replace it with --force")
    if _read_document(target / CONFIG_FILE).get("format") != FORMAT:
        raise EngineError(f"{target}: --force replaces engines only, and this directory is not one; remove it yourself")
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if not any(fnmatch(name, pattern) for pattern in _ALL_FILES):
            raise EngineError(f"{path}: not a file of an engine, and --force would delete it; move it elsewhere")


def _read_document(path: Path) -> Mapping[str, Any]:
    return read_json_object(path, EngineError, "an engine directory written by build_engine.py")


def _usable_device(device: str) -> str:
    """The name under which safetensors knows `device`: `cpu` for `cpu:0`."""
    try:
        probe = torch.zeros(1, device=device)
        probe.tolist()  # the meta device holds no data
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise InputError(f"device: expected one that torch can use, found {device!r} ({one_line(error)})") from error
    return str(probe.device)


def _parse_config(document: Mapping[str, Any]) -> EngineConfig:
    expected = ("format", "version", "model", "build", "tensorrt")
    for key in document:
        if key not in expected:
            raise InputError(f"unknown key {shown(key)}; expected one of {', '.join(expected)}")
    for section in ("model", "build"):
        if not isinstance(document.get(section), dict):
            raise InputError(f"{section}: expected an object, found {shown(document.get(section))}")
    return EngineConfig(
        model=from_mapping(ModelConfig, document["model"], "model"),
        build=from_mapping(BuildConfig, document["build"], "build"),
        tensorrt=_parse_tensorrt(document.get("tensorrt")),
    )


def _parse_tensorrt(section: object) -> TensorRTBuild | None:
    """None where the directory holds no TensorRT engines."""
    if section is None:
        return None
    if not isinstance(section, dict):
        raise InputError(f"tensorrt: expected an object, found {shown(section)}")
    return from_mapping(TensorRTBuild, section, "tensorrt")


def _check_names(path: Path, found: Mapping[str, None], specs: Mapping[str, WeightSpec]) -> None:
    for name in specs:
        if name not in found:
            raise EngineError(f"{path}: {name}: expected a tensor of shape {list(specs[name].shape)}, found none")
    for name in found:
        if name not in specs:
            raise EngineError(f"{path}: {name:.200}: unknown tensor; config.json describes a model without it")


def _check_tensor(path: Path, name: str, tensor: torch.Tensor, spec: WeightSpec) -> None:
    if tuple(tensor.shape) != spec.shape:
        raise EngineError(f"{path}: {name}: expected shape {list(spec.shape)}, found {list(tensor.shape)}")
    expected = torch.float8_e4m3fn if spec.dtype == "float8_e4m3fn" else TORCH_DTYPES[spec.dtype]
    if tensor.dtype != expected:
        raise EngineError(f"{path}: {name}: expected {expected}, found {tensor.dtype}")


def _check_scales(path: Path, scales: Mapping[str, torch.Tensor]) -> None:
    """Of FP8 products and KV caches; one copy from the device for all."""
    if not scales:
        return
    values = torch.cat([scale.reshape(-1) for scale in scales.values()]).cpu()
    for name, own in zip(scales, values.split([scale.numel() for scale in scales.values()]), strict=True):
        unusable = own[~(own.isfinite() & (own > 0))].tolist()
        if unusable:
            raise EngineError(f"{path}: {name}: expected a finite number above 0, found {unusable[0]}")
