"""A TensorRT-LLM checkpoint: config.json and a safetensors file per rank, joined to whole tensors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sparsespec.builder.build_config import DType
from sparsespec.builder.checkpoint.base import LM_HEAD, check_scale, check_tied
from sparsespec.builder.checkpoint.hf_config import read_dtype, read_eos_token_ids
from sparsespec.builder.checkpoint.hf_json import JsonFile
from sparsespec.builder.checkpoint.safetensors_file import SafetensorsFile
from sparsespec.builder.checkpoint.trtllm_config import TrtllmConfig, read_trtllm_config
from sparsespec.builder.checkpoint.trtllm_layout import RankLayout
from sparsespec.builder.checkpoint.trtllm_tensors import StoredTensor, find_tensor
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.fused_weights import KV_SCALE, fused_sources
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.tokenizer_files import copy_tokenizer, load_tokenizer

# What its attention kernels read beside the config: cosines, sines and frequencies, and 1 / kv_cache_scaling_factor.
_DERIVED = ("embed_positions", "embed_positions_for_gpt_attention", "rotary_inv_freq", "kv_cache_rcp_scaling_factor")


class TensorRtLlmCheckpoint:
    """Reads tensors on demand, as stored. Raises CheckpointError for what is damaged or not supported."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        config = JsonFile.read(directory / "config.json")
        self._config: TrtllmConfig = read_trtllm_config(config)
        self.dtype: DType = read_dtype(directory, "auto")
        self._files = _open_ranks(directory, self._config.layout)
        eos_token_ids = read_eos_token_ids(directory, config) or self._tokenizer_eos()
        with config.naming():
            self.model: ModelConfig = replace(
                self._config.model, tie_word_embeddings=self._is_tied(), eos_token_ids=eos_token_ids
            )
        self._refuse_unknown_tensors()
        if self.model.tie_word_embeddings and self._has_lm_head():
            check_tied(self, config.path)

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """See Checkpoint."""
        stored = find_tensor(self._config, name, shape)
        files = self._stage_files(stored.stage)
        _check_same_dtype(files, stored.name)
        groups = [files[first : first + stored.copies] for first in range(0, len(files), stored.copies)]
        parts = [_read_copies(group, stored) for group in groups]
        return torch.cat(parts, stored.dim).narrow(stored.dim, 0, shape[stored.dim])

    def kv_scale(self, layer: int) -> torch.Tensor | None:
        """See Checkpoint."""
        if not self._config.fp8_kv_cache:
            return None
        stored = find_tensor(self._config, _kv_scale(layer), (1,))
        scale = self.tensor(_kv_scale(layer), (1,)).float()
        check_scale(self._stage_files(stored.stage)[0].path, stored.name, scale)
        return scale.repeat(2, self.model.num_kv_heads)

    def save_tokenizer(self, directory: Path) -> None:
        """See Checkpoint."""
        try:
            copy_tokenizer(self._directory, directory)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; TensorRT-LLM's converters write no tokenizer: copy the original model's tokenizer files "
                "(tokenizer.json, tokenizer_config.json ...) and its generation_config.json there"
            ) from error

    def _stage_files(self, stage: int) -> list[SafetensorsFile]:
        return [self._files[rank] for rank in self._config.layout.ranks(stage)]

    def _is_tied(self) -> bool:
        # Where there is no projection, and nothing is said, TensorRT-LLM takes the embedding.
        return self._config.tied if self._config.tied is not None else not self._has_lm_head()

    def _has_lm_head(self) -> bool:
        return LM_HEAD in self._files[-1].names

    def _tokenizer_eos(self) -> tuple[int, ...]:
        """TensorRT-LLM's own tools stop where the tokenizer says; a generation_config.json may say more."""
        with TemporaryDirectory() as directory:
            self.save_tokenizer(Path(directory))
            token = load_tokenizer(Path(directory)).eos_token_id
        return () if token is None else (token,)

    def _refuse_unknown_tensors(self) -> None:
        """Scales of products, adapters, experts and fused projections would change the result."""
        sources = [source for sources in fused_sources(self.model).values() for source in sources.items()]
        if self._config.fp8_kv_cache:
            sources += [(_kv_scale(layer), (1,)) for layer in range(self.model.num_layers)]
        stored = [find_tensor(self._config, name, shape) for name, shape in sources]
        for stage in range(self._config.layout.pp_size):
            known = dict.fromkeys([LM_HEAD, *(tensor.name for tensor in stored if tensor.stage == stage)])
            for file in self._stage_files(stage):
                _refuse_others(file, known)


def _kv_scale(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.{KV_SCALE}"


def _check_same_dtype(files: Sequence[SafetensorsFile], name: str) -> None:
    first = files[0].dtype(name)
    for file in files[1:]:
        if file.dtype(name) != first:
            expected = f"{first} as in {files[0].path.name}"
            raise CheckpointError(f"{file.path}: {name}: expected {expected}, found {file.dtype(name)}")


def _read_copies(files: Sequence[SafetensorsFile], stored: StoredTensor) -> torch.Tensor:
    """What all of these files hold; ranks of different models must not be mixed."""
    first = files[0].tensor(stored.name, stored.shape, stored.rows)
    for file in files[1:]:
        if not torch.equal(file.tensor(stored.name, stored.shape, stored.rows), first):
            original = files[0].path.name
            raise CheckpointError(f"{file.path}: {stored.name}: expected the same values as in {original}")
    return first


def _refuse_others(file: SafetensorsFile, known: Collection[str]) -> None:
    for name in file.names:
        if name not in known and name.rpartition(".")[2] not in _DERIVED:
            found = f"{file.path}: {name:.200}"
            raise CheckpointError(f"{found}: not a tensor of a plain model of this kind; not supported")


def _open_ranks(directory: Path, layout: RankLayout) -> list[SafetensorsFile]:
    """One file per rank, neither fewer nor more than the config says."""
    expected = f"{layout.num_ranks} ranks (mapping: tp_size {layout.tp_size}, pp_size {layout.pp_size})"
    files = []
    for rank in range(layout.num_ranks):
        path = directory / f"rank{rank}.safetensors"
        if not path.exists():
            raise CheckpointError(f"{path}: expected {expected}, found {rank}")
        files.append(SafetensorsFile(path))
    surplus = directory / f"rank{layout.num_ranks}.safetensors"
    if surplus.exists():
        raise CheckpointError(f"{surplus}: expected {expected}, found another")
    return files
