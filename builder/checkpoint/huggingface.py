"""A Hugging Face directory: config.json, one or several safetensors files, tokenizer files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sparsespec.builder.build_config import DType
from sparsespec.builder.checkpoint.base import check_shape
from sparsespec.builder.checkpoint.hf_config import read_dtype, read_model_config
from sparsespec.builder.checkpoint.hf_json import JsonFile
from sparsespec.builder.engine_dir import TORCH_DTYPES
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.input_files import check_readable
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.tokenizer_files import copy_tokenizer

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


class HuggingFaceCheckpoint:
    """Reads tensors on demand, as stored. Raises CheckpointError for what is damaged or not supported."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.model: ModelConfig = read_model_config(directory)
        self._index = _read_index(directory)
        self._readers: dict[str, Any] = {}
        self.dtype: DType = read_dtype(directory, self._stored_dtype())

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """See Checkpoint."""
        path = self._directory / self._file_of(name)
        try:
            reader = self._reader(path)
            if name not in list(reader.keys()):
                raise CheckpointError(f"{path}: {name}: expected a tensor of shape {list(shape)}, found none")
            check_shape(path, name, shape, reader.get_slice(name).get_shape())
            tensor: torch.Tensor = reader.get_tensor(name)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: {name}: expected a tensor of shape {list(shape)}, found no file") from None
        except OSError as error:
            raise CheckpointError(f"{path}: {name}: cannot be read: {error}") from error
        except SafetensorError as error:
            raise CheckpointError(
                f"{path}: {name}: expected a tensor of shape {list(shape)}, "
                f"found a damaged file of {path.stat().st_size} bytes ({error})"
            ) from error
        if tensor.dtype not in TORCH_DTYPES.values():
            raise CheckpointError(f"{path}: {name}: expected one of {', '.join(TORCH_DTYPES)}, found {tensor.dtype}")
        return tensor

    def save_tokenizer(self, directory: Path) -> None:
        """See Checkpoint."""
        copy_tokenizer(self._directory, directory)

    def _file_of(self, name: str) -> str:
        if self._index is None:
            return _SINGLE_FILE
        index = self._directory / _INDEX_FILE
        file = self._index.values.get(name)
        if file is None:
            raise CheckpointError(f"{index}: {name}: expected the name of a safetensors file, found nothing")
        # A name with a folder in it could point anywhere on this machine.
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index}: {name}: expected the name of a file beside the index, found {file!r}")
        return file

    def _reader(self, path: Path) -> Any:
        if path.name not in self._readers:
            check_readable(path)
            self._readers[path.name] = safe_open(path, framework="pt")
        return self._readers[path.name]

    def _stored_dtype(self) -> DType:
        norm = self.tensor("model.norm.weight", (self.model.hidden_size,))
        return next(name for name, dtype in TORCH_DTYPES.items() if dtype == norm.dtype)


def _read_index(directory: Path) -> JsonFile | None:
    """The weight map of a sharded checkpoint; None for a single file."""
    if (directory / _SINGLE_FILE).exists():
        return None
    if (directory / _INDEX_FILE).exists():
        return JsonFile.read(directory / _INDEX_FILE).section("weight_map")
    raise CheckpointError(f"{directory}: expected {_SINGLE_FILE} or {_INDEX_FILE}, found neither")
