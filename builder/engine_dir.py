"""The engine directory: config.json, weights.safetensors and the tokenizer; how it is written, read and checked."""

from __future__ import annotations

import dataclasses
import json
import math
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
from sparsespec.builder.fused_weights import fused_shapes
from sparsespec.builder.input_files import check_readable, read_json_object
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.staging import publish, staged

FORMAT = "sparsespec-engine"
VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
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

    def __post_init__(self) -> None:
        if self.build.dtype not in TORCH_DTYPES:
            raise InputError(f"build: dtype: expected one of {', '.join(TORCH_DTYPES)}, found {self.build.dtype!r}")


def write_engine(
    output_dir: Path,
    config: EngineConfig,
    weights: Iterable[tuple[str, torch.Tensor]],
    save_tokenizer: Callable[[Path], None],
    force: bool,
) -> None:
    """Write an engine as one atomic step: `output_dir` holds either a complete engine or what it held before.

    `weights` yields every tensor of `fused_shapes(config.model)` in the build's dtype. A non-empty `output_dir` is
    replaced only with `force`, only when it holds an engine and nothing else, and only once the new engine is complete
    and on disk. Raises EngineError when `output_dir` may not be replaced or cannot be written.
    """
    # Not resolve(): Python before 3.13 raises a RuntimeError there for a loop of links.
    target = Path(os.path.realpath(output_dir))
    try:
        _check_replaceable(target, force)
        target.parent.mkdir(parents=True, exist_ok=True)
        with staged(target) as stage:
            _write_files(stage.content, config, weights, save_tokenizer)
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
    """Load every tensor of `fused_shapes(config.model)` onto `device`, in the build's dtype.

    Raises EngineError naming the file, and the tensor with what was expected and found, when anything differs;
    InputError for a device that this machine does not have.
    """
    torch_device = _usable_device(device)
    path = engine_dir / WEIGHTS_FILE
    shapes = fused_shapes(config.model)
    dtype = TORCH_DTYPES[config.build.dtype]
    if not path.is_file():
        raise EngineError(f"{path}: missing; expected a safetensors file with {len(shapes)} tensors")
    try:
        check_readable(path)
        with safe_open(path, framework="pt", device=torch_device) as reader:
            _check_names(path, dict.fromkeys(reader.keys()), shapes)
            weights = {name: reader.get_tensor(name) for name in shapes}
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error}") from error
    except SafetensorError as error:
        payload = sum(math.prod(shape) for shape in shapes.values()) * config.build.element_size
        raise EngineError(
            f"{path}: damaged weights: expected a header and {payload} bytes of tensors, "
            f"found a file of {path.stat().st_size} bytes ({error!s:.200})"
        ) from error
    for name, shape in shapes.items():
        _check_tensor(path, name, weights[name], shape, dtype)
    return weights


def _write_files(
    directory: Path,
    config: EngineConfig,
    weights: Iterable[tuple[str, torch.Tensor]],
    save_tokenizer: Callable[[Path], None],
) -> None:
    save_tokenizer(directory)
    document = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(config)}
    (directory / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    tensors = dict(weights)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == fused_shapes(config.model)
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
        if not any(fnmatch(name, pattern) for pattern in (CONFIG_FILE, WEIGHTS_FILE, *_TOKENIZER_FILES)):
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
    expected = ("format", "version", "model", "build")
    for key in document:
        if key not in expected:
            raise InputError(f"unknown key {shown(key)}; expected one of {', '.join(expected)}")
    for section in ("model", "build"):
        if not isinstance(document.get(section), dict):
            raise InputError(f"{section}: expected an object, found {shown(document.get(section))}")
    return EngineConfig(
        from_mapping(ModelConfig, document["model"], "model"), from_mapping(BuildConfig, document["build"], "build")
    )


def _check_names(path: Path, found: Mapping[str, None], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name in shapes:
        if name not in found:
            raise EngineError(f"{path}: {name}: expected a tensor of shape {list(shapes[name])}, found none")
    for name in found:
        if name not in shapes:
            raise EngineError(f"{path}: {name:.200}: unknown tensor; config.json describes a model without it")


def _check_tensor(path: Path, name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape:
        raise EngineError(f"{path}: {name}: expected shape {list(shape)}, found {list(tensor.shape)}")
    if tensor.dtype != dtype:
        raise EngineError(f"{path}: {name}: expected {dtype}, found {tensor.dtype}")
