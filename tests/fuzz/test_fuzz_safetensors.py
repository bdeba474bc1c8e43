"""Damaged safetensors files are read, or refused with a clear error: of a checkpoint, of a rank, of an engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hostile_campaign import campaign, result_or_error
from hostile_checkpoints import check_scales, read_all, small_model
from hostile_mutations import ODD_FLOATS, ODD_INTEGERS, ODD_TEXTS, damaged_bytes, damaged_json
from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import load_weights, read_engine_config
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.fused_weights import fused_specs
from sparsespec.builder.model_config import ModelConfig
from tiny_modelopt import GROUPS, write_tiny_modelopt
from tiny_models import tiny_hf_model, write_tiny_engine, write_tiny_hf_checkpoint
from tiny_trtllm import edit_config, write_tiny_trtllm

MODEL = small_model("qwen2")
DTYPES = [
    "BOOL",
    "U8",
    "I8",
    "F8_E5M2",
    "F8_E4M3",
    "F8_E8M0",
    "F4",
    "F6_E2M3",
    "I16",
    "U16",
    "F16",
    "BF16",
    "I32",
    "U32",
    "F32",
    "C64",
    "F64",
    "I64",
    "U64",
    "Q9",
]


def test_one_file(tmp_path: Path) -> None:
    directory = write_tiny_hf_checkpoint(tmp_path / "hf", tiny_hf_model(MODEL))
    _try_file("safetensors of Hugging Face", directory / "model.safetensors", lambda: read_all(directory))


def test_a_shard(tmp_path: Path) -> None:
    directory = write_tiny_hf_checkpoint(tmp_path / "hf", tiny_hf_model(MODEL), shards=2)
    shard = max(directory.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    _try_file("safetensors of a shard", shard, lambda: read_all(directory))


def test_a_rank(tmp_path: Path) -> None:
    directory = write_tiny_trtllm(tmp_path / "trtllm", tiny_hf_model(MODEL), tp_size=2, fp8_cache=True)
    edit_config(directory, eos_token_id=0)  # or every input would read the tokenizer
    _try_file("safetensors of a rank", directory / "rank1.safetensors", lambda: read_all(directory))


def test_an_engine(tmp_path: Path) -> None:
    _try_engine("safetensors of an engine", tmp_path / "engine", MODEL)


def test_modelopt(tmp_path: Path) -> None:
    directory = write_tiny_modelopt(tmp_path / "fp8", tiny_hf_model(MODEL))
    _try_file("safetensors of ModelOpt", directory / "model.safetensors", lambda: read_all(directory))


def test_scales_of_modelopt(tmp_path: Path) -> None:
    """Taken if all of them are finite and above 0, and those of one product not too far apart."""
    directory = write_tiny_modelopt(tmp_path / "fp8", tiny_hf_model(MODEL))
    path = directory / "model.safetensors"
    intact = load_file(path)
    names = [name for name in intact if name.endswith("_scale")]

    def attempt(random: Random) -> None:
        odd = {name: _odd_scale(intact[name].shape, random) for name in random.sample(names, random.choice((1, 2, 5)))}
        save_file(intact | odd, path)
        positive = all(scale.isfinite().all() and (scale > 0).all() for scale in odd.values())
        usable = positive and all(_are_near(intact | odd, group) for group in GROUPS)
        assert isinstance(read_all(directory), ModelConfig if usable else CheckpointError), odd

    campaign("scales of ModelOpt", attempt)


def test_an_fp8_engine(tmp_path: Path) -> None:
    model = small_model("qwen2", quantization="fp8")
    _try_engine("safetensors of an FP8 engine", tmp_path / "engine", model)


def _are_near(tensors: Mapping[str, torch.Tensor], parts: tuple[str, ...]) -> bool:
    """Whether float32 holds the quotients of the parts' scales."""
    scales = torch.stack([tensors[f"model.layers.0.{part}.weight_scale"] for part in parts])
    return bool((scales.max() / scales.min()).isfinite())


def _odd_scale(shape: torch.Size, random: Random) -> torch.Tensor:
    bits = int.from_bytes(random.randbytes(4), "little", signed=True)
    numbers = (torch.tensor(random.choice(ODD_FLOATS)), torch.tensor(bits, dtype=torch.int32).view(torch.float32))
    return random.choice(numbers).expand(shape).clone()


def _try_engine(target: str, directory: Path, model: ModelConfig) -> None:
    """What is loaded has the names, shapes and types that config.json asks for."""
    engine = write_tiny_engine(directory, model, BuildConfig(dtype="float32", kv_cache_dtype="fp8"), seed=0)
    config = read_engine_config(engine)
    specs = fused_specs(model, "float32", "fp8")
    expected = {name: (spec.shape, getattr(torch, spec.dtype)) for name, spec in specs.items()}

    def check() -> None:
        weights = result_or_error(lambda: load_weights(engine, config, "cpu"), str(engine))
        if isinstance(weights, dict):
            assert {name: (tuple(weight.shape), weight.dtype) for name, weight in weights.items()} == expected
            check_scales(weights)

    _try_file(target, engine / "weights.safetensors", check)


def _try_file(target: str, path: Path, read: Callable[[], object]) -> None:
    """The file under `path` is damaged in turn; `read` checks what comes of it."""
    intact = path.read_bytes()
    path.unlink()
    header_size = int.from_bytes(intact[:8], "little")
    header, data = json.loads(intact[8 : 8 + header_size]), intact[8 + header_size :]

    def attempt(random: Random) -> None:
        kind = random.randrange(4)
        if kind == 0:
            path.write_bytes(damaged_bytes(intact, random))
        elif kind == 1:
            _write(path, damaged_json(header, random), data, random)
        else:
            _write(path, json.dumps(_lying(header, len(data), random)).encode(), data, random)
        read()

    campaign(target, attempt)
    shutil.rmtree(path.parent)


def _write(path: Path, header: bytes, data: bytes, random: Random) -> None:
    size = len(header)
    if random.random() < 0.1:
        size = random.choice((*(abs(odd) for odd in ODD_INTEGERS), 10**8, size - 1, size + 1))
    path.write_bytes((size % 2**64).to_bytes(8, "little") + header + data)


def _lying(header: dict[str, Any], data_size: int, random: Random) -> dict[str, Any]:
    """Another type, shape or place of a tensor, or another name."""
    lying = {name: dict(entry) for name, entry in header.items()}
    name = random.choice([name for name in lying if name != "__metadata__"])
    entry, kind = lying[name], random.randrange(7)
    begin, end = entry["data_offsets"]
    if kind == 0:
        entry["dtype"] = random.choice(DTYPES)
    elif kind == 1:
        entry["shape"] = random.choices((0, 1, 2, 8, 16, 2**32, 2**63, 2**64 - 1), k=random.randint(0, 5))
    elif kind == 2:
        entry["shape"] = entry["shape"][::-1] if len(entry["shape"]) > 1 else [1, *entry["shape"]]
    elif kind == 3:
        entry["data_offsets"] = [
            random.choice((0, begin, end, *ODD_INTEGERS)),
            random.choice((end, begin, data_size, 2**63)),
        ]
    elif kind == 4:
        entry["data_offsets"] = random.choice(
            [entry["data_offsets"] for entry in lying.values() if "data_offsets" in entry]
        )
    elif kind == 5:
        lying[random.choice(ODD_TEXTS)] = lying.pop(name)
    else:
        # The same bytes as another type of another shape: consistent, and yet not what the model needs.
        entry["dtype"], entry["shape"] = random.choice(
            (("U8", [end - begin]), ("F16", [(end - begin) // 2]), ("F64", [(end - begin) // 8]))
        )
    return lying
