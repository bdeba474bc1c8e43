"""A GGUF file, under Hugging Face's tensor names and row order."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch

from sparsespec.builder.build_config import DType
from sparsespec.builder.checkpoint.gguf_config import read_model_config
from sparsespec.builder.checkpoint.gguf_reader import GgufMetadata
from sparsespec.builder.checkpoint.gguf_rope import ROPE_FREQS
from sparsespec.builder.checkpoint.gguf_tokenizer import build_tokenizer
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.fused_weights import fused_sources
from sparsespec.builder.model_config import Family, ModelConfig
from sparsespec.builder.tokenizer_files import save_tokenizer

_ARCHITECTURES: dict[Family, gguf.MODEL_ARCH] = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}


class GgufCheckpoint:
    """Dequantises tensors on demand to float32. Raises CheckpointError for what is damaged or not supported."""

    def __init__(self, path: Path) -> None:
        self._file = GgufMetadata(path)
        self.model: ModelConfig = read_model_config(self._file)
        self.dtype: DType = "float32"
        self._names = gguf.get_tensor_name_map(_ARCHITECTURES[self.model.family], self.model.num_layers)
        self._refuse_other_tensors()
        self._tokenizer = build_tokenizer(self._file)

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """See Checkpoint."""
        values = torch.from_numpy(self._file.values(self._stored_name(name), shape))
        # Of the other families, llama.cpp too rotates rows i and i + head_dim / 2.
        if self.model.family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            return _unpermuted(values, self.model.head_dim)
        return values

    def kv_scale(self, layer: int) -> None:
        """See Checkpoint. The format has none."""

    def save_tokenizer(self, directory: Path) -> None:
        """See Checkpoint."""
        save_tokenizer(self._tokenizer, directory)

    def _stored_name(self, name: str) -> str:
        stored = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        return stored

    def _refuse_other_tensors(self) -> None:
        """A bias or a norm that the model does not have would change the result."""
        sources = [name for parts in fused_sources(self.model).values() for name in parts]
        known = dict.fromkeys(map(self._stored_name, sources))
        if self.model.family == "llama":
            known[ROPE_FREQS] = None
        for name in self._file.tensors:
            if name not in known:
                raise CheckpointError(
                    f"{self._file.path}: {name:.200}: not a tensor of a {self.model.family} model of "
                    f"{self.model.num_layers} layers; it is not supported"
                )


def _unpermuted(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """llama.cpp rotates rows 2i and 2i+1 of a head together, Hugging Face rows i and i + head_dim / 2."""
    heads = rows.shape[0] // head_dim
    return rows.view(heads, head_dim // 2, 2, -1).transpose(1, 2).reshape(rows.shape)
