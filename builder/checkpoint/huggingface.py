"""A Hugging Face directory: config.json, one or several safetensors files, tokenizer files."""

from __future__ import annotations

from pathlib import Path

import torch

from sparsespec.builder.build_config import DType
from sparsespec.builder.checkpoint.base import EMBEDDING, LM_HEAD, check_tied
from sparsespec.builder.checkpoint.hf_config import read_dtype, read_model_config
from sparsespec.builder.checkpoint.hf_json import JsonFile
from sparsespec.builder.checkpoint.modelopt import read_scale
from sparsespec.builder.checkpoint.safetensors_file import SafetensorsFile
from sparsespec.builder.config_io import shown
from sparsespec.builder.engine_dir import TORCH_DTYPES
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.fused_weights import INPUT_SCALE, WEIGHT_SCALE, fused_sources, is_quantized
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.tokenizer_files import copy_tokenizer

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_LONGEST_FILE_NAME = 255
# Of keys and of values; ModelOpt calls them so, others as in the second place.
_KV_SCALES = (("k_proj.k_scale", "k_scale"), ("v_proj.v_scale", "v_scale"))


class HuggingFaceCheckpoint:
    """Reads tensors on demand, as stored. Raises CheckpointError for what is damaged or not supported."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.model: ModelConfig = read_model_config(directory)
        self._index = _read_index(directory)
        self._files: dict[str, SafetensorsFile] = {}
        self._fp8_names = _fp8_names(self.model)
        tied_head = self.model.tie_word_embeddings and self._holds(LM_HEAD)
        # Whoever saved a tied model's one matrix may have kept either name.
        self._stored_names = {EMBEDDING: LM_HEAD} if tied_head and not self._holds(EMBEDDING) else {}
        self.dtype: DType = read_dtype(directory, self._stored_dtype())
        # transformers decodes with another projection where there is one, whatever the config says.
        if tied_head and self._holds(EMBEDDING):
            check_tied(self, directory / "config.json")

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """See Checkpoint."""
        stored = self._stored_names.get(name, name)
        file = self._open(self._file_of(stored))
        if name in self._fp8_names:
            return file.fp8_tensor(stored, shape)
        if name.endswith((f".{WEIGHT_SCALE}", f".{INPUT_SCALE}")):
            return read_scale(file, stored)
        return file.tensor(stored, shape)

    def kv_scale(self, layer: int) -> torch.Tensor | None:
        """See Checkpoint."""
        prefix = f"model.layers.{layer}.self_attn"
        named = [[f"{prefix}.{name}" for name in names] for names in _KV_SCALES]
        if not any(self._holds(name) for names in named for name in names):
            return None
        # Where one of the two is missing, the error names it as ModelOpt would.
        stored = [next((name for name in names if self._holds(name)), names[0]) for names in named]
        heads = self.model.num_kv_heads
        return torch.stack([self._open(self._file_of(name)).head_scales(name, heads) for name in stored])

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
        if not isinstance(file, str) or Path(file).name != file or len(file) > _LONGEST_FILE_NAME:
            raise CheckpointError(f"{index}: {name}: expected the name of a file beside the index, found {shown(file)}")
        return file

    def _open(self, name: str) -> SafetensorsFile:
        if name not in self._files:
            self._files[name] = SafetensorsFile(self._directory / name)
        return self._files[name]

    def _holds(self, name: str) -> bool:
        return name in (self._open(_SINGLE_FILE).names if self._index is None else self._index.values)

    def _stored_dtype(self) -> DType:
        norm = self.tensor("model.norm.weight", (self.model.hidden_size,))
        return next(name for name, dtype in TORCH_DTYPES.items() if dtype == norm.dtype)


def _fp8_names(model: ModelConfig) -> dict[str, None]:
    sources = fused_sources(model)
    return dict.fromkeys(source for name in sources if is_quantized(model, name) for source in sources[name])


def _read_index(directory: Path) -> JsonFile | None:
    """The weight map of a sharded checkpoint; None for a single file."""
    if (directory / _SINGLE_FILE).exists():
        return None
    if (directory / _INDEX_FILE).exists():
        return JsonFile.read(directory / _INDEX_FILE).section("weight_map")
    raise CheckpointError(f"{directory}: expected {_SINGLE_FILE} or {_INDEX_FILE}, found neither")
