"""Directories with something else where a file should be: refused with a clear error, never waited for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from hostile_campaign import campaign, result_or_error
from hostile_checkpoints import read_all, small_model
from hostile_mutations import damaged_bytes
from sparsespec.builder.build_config import BuildConfig
from sparsespec.runtime.config import RuntimeConfig
from sparsespec.runtime.loading import load_engine
from tiny_models import tiny_hf_model, write_tiny_engine, write_tiny_hf_checkpoint
from tiny_trtllm import write_tiny_trtllm

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def test_engines(tmp_path: Path) -> None:
    engine = write_tiny_engine(tmp_path / "intact", small_model(), BuildConfig(dtype="float32"), seed=0)
    target = tmp_path / "hostile"
    names = ("config.json", "weights.safetensors", *TOKENIZER_FILES)

    def attempt(random: Random) -> None:
        _copy_with_surprises(engine, target, names, random)
        result_or_error(lambda: load_engine(target, RuntimeConfig(device="cpu")), str(target))

    campaign("files of an engine", attempt)


def test_checkpoints(tmp_path: Path) -> None:
    directories = [
        write_tiny_hf_checkpoint(tmp_path / "hf", tiny_hf_model(small_model())),
        write_tiny_hf_checkpoint(tmp_path / "sharded", tiny_hf_model(small_model()), shards=2),
        write_tiny_trtllm(tmp_path / "trtllm", tiny_hf_model(small_model()), tp_size=2),
    ]
    target = tmp_path / "hostile"

    def attempt(random: Random) -> None:
        directory = random.choice(directories)
        present = (path.name for path in sorted(directory.iterdir()))
        names = tuple(dict.fromkeys((*present, *TOKENIZER_FILES, "generation_config.json")))
        _copy_with_surprises(directory, target, names, random)
        read_all(target)

    campaign("files of a checkpoint", attempt)


def _copy_with_surprises(source: Path, target: Path, names: tuple[str, ...], random: Random) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for name in random.sample(names, random.choice((1, 1, 2))):
        _replace(target / name, random)


def _replace(path: Path, random: Random) -> None:
    content = path.read_bytes() if path.is_file() else b"{}"
    path.unlink(missing_ok=True)
    kinds: tuple[Callable[[], object], ...] = (
        lambda: None,
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to("/dev/null"),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(random.randbytes(100)),
        lambda: path.write_bytes(damaged_bytes(content, random)),
        lambda: path.write_bytes(content * 2),
    )
    random.choice(kinds)()
