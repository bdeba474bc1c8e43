"""Choosing the reader for what `--checkpoint_dir` names."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from huggingface_hub import snapshot_download

from sparsespec.builder.checkpoint.base import Checkpoint
from sparsespec.builder.checkpoint.gguf_file import GgufCheckpoint
from sparsespec.builder.checkpoint.hf_json import JsonFile
from sparsespec.builder.checkpoint.huggingface import HuggingFaceCheckpoint
from sparsespec.builder.checkpoint.tensorrt_llm import TensorRtLlmCheckpoint
from sparsespec.builder.errors import CheckpointError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


def open_checkpoint(source: str) -> Checkpoint:
    """Open a Hugging Face or TensorRT-LLM directory, a hub id such as `org/name`, or a .gguf file.

    Weights are read on demand.

    Raises CheckpointError when there is nothing to read, or a model that is damaged or not supported.
    """
    checkpoint = _reader(source)
    model = checkpoint.model
    # A cheap look at the far end: a config that lies about its depth fails here, before anything is sized by it.
    checkpoint.tensor(f"model.layers.{model.num_layers - 1}.input_layernorm.weight", (model.hidden_size,))
    return checkpoint


def _reader(source: str) -> Checkpoint:
    path = Path(source)
    mode = _file_mode(path)
    if stat.S_ISDIR(mode):
        return _directory_reader(path)
    if stat.S_ISREG(mode) and path.suffix == ".gguf":
        return GgufCheckpoint(path)
    if mode or path.suffix == ".gguf" or not _HUB_ID.fullmatch(source):
        found = "another kind of file" if mode else "nothing"
        expected = "a Hugging Face directory, a hub id or a .gguf file, or a TensorRT-LLM checkpoint directory"
        raise CheckpointError(f"{source}: expected {expected}, found {found}")
    return _directory_reader(_download(source))


def _directory_reader(directory: Path) -> Checkpoint:
    values = JsonFile.read(directory / "config.json").values
    # The last is an engine's.
    if "model_type" not in values and any(key in values for key in ("architecture", "mapping", "pretrained_config")):
        return TensorRtLlmCheckpoint(directory)
    return HuggingFaceCheckpoint(directory)


def _file_mode(path: Path) -> int:
    """What `path` is; 0 for nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _download(hub_id: str) -> Path:
    try:
        # Subfolders hold other formats of the same weights.
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{hub_id}: no local directory of that name, and the Hugging Face Hub did not provide it: {reason}"
        ) from error
