"""Files that claim to be huge, with a hole for a body: opening them takes neither the memory nor the time claimed."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from hostile_checkpoints import small_model
from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.model_config import ModelConfig
from tiny_modelopt import write_tiny_modelopt
from tiny_models import tiny_hf_model, write_tiny_engine, write_tiny_hf_checkpoint

MOST_BYTES = 300 * 2**20
HOLE = 2**36

# Says of every file by how much it raised the peak of memory, and why it was refused.
OPEN = """
import resource, sys
from sparsespec.builder.checkpoint import open_checkpoint
from sparsespec.builder.engine_dir import load_weights, read_engine_config
from sparsespec.builder.errors import InputError
from pathlib import Path
used = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in map(Path, sys.argv[1:]):
    before, message = used(), "taken"
    try:
        if (path / "weights.safetensors").exists():
            load_weights(path, read_engine_config(path), "cpu")
        else:
            open_checkpoint(str(path))
    except InputError as error:
        message = str(error).replace(str(path), "")
    print(used() - before, message[:300], flush=True)
"""


def _gguf(header: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "huge.gguf"
        path.write_bytes(header)
        os.truncate(path, HOLE)
        return path

    return write


def _counts(tensors: int, keys: int) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, tensors, keys)


def _array(kind: int, length: int) -> bytes:
    return _counts(0, 2) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, kind, length)


def _hf_header_without_end(folder: Path) -> Path:
    directory = write_tiny_hf_checkpoint(folder / "hf", tiny_hf_model(small_model()))
    path = directory / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + b"{")
    os.truncate(path, HOLE)
    return directory


def _hf_config_without_end(folder: Path) -> Path:
    directory = write_tiny_hf_checkpoint(folder / "hf", tiny_hf_model(small_model()))
    os.truncate(directory / "config.json", HOLE)
    return directory


def _hf_config_of_huge_sizes(folder: Path) -> Path:
    directory = write_tiny_hf_checkpoint(folder / "hf", tiny_hf_model(small_model()))
    text = (directory / "config.json").read_text()
    for key in ("vocab_size", "hidden_size", "intermediate_size"):
        text = text.replace(f'"{key}": ', f'"{key}": 20000')
    (directory / "config.json").write_text(text)
    return directory


def _quantization_without_end(folder: Path) -> Path:
    directory = write_tiny_modelopt(folder / "fp8", tiny_hf_model(small_model()))
    os.truncate(directory / "hf_quant_config.json", HOLE)
    return directory


def _engine_weights_of_a_hole(folder: Path, model: ModelConfig) -> Path:
    engine = write_tiny_engine(folder / "engine", model, BuildConfig(dtype="float32"), seed=0)
    os.truncate(engine / "weights.safetensors", HOLE)
    return engine


LIARS: Mapping[str, Callable[[Path], Path]] = {
    "2^40 tensors": _gguf(_counts(2**40, 0)),
    "2^64 - 1 keys": _gguf(_counts(0, 2**64 - 1)),
    "2^40 numbers": _gguf(_array(0, 2**40)),
    "4 million numbers": _gguf(_array(0, 4_000_000)),
    "4 million texts": _gguf(_array(8, 4_000_000)),
    "4 million arrays": _gguf(_array(9, 4_000_000)),
    "a text of 2^63 bytes": _gguf(_counts(0, 1) + struct.pack("<Q", 2**63)),
    "2^32 - 1 dimensions": _gguf(_counts(1, 0) + struct.pack("<QI", 0, 2**32 - 1)),
    "10 million dimensions": _gguf(_counts(1, 0) + struct.pack("<QI", 0, 10**7)),
    "a tensor of 2^35 bytes": _gguf(_counts(1, 0) + struct.pack("<QIQIQ", 0, 1, 2**33, 0, 0)),
    "a header of 2^40 bytes": _hf_header_without_end,
    "config.json of 2^36 bytes": _hf_config_without_end,
    "sizes of 10^9": _hf_config_of_huge_sizes,
    "hf_quant_config.json of 2^36 bytes": _quantization_without_end,
    "weights of 2^36 bytes": lambda folder: _engine_weights_of_a_hole(folder, small_model()),
    "FP8 weights of 2^36 bytes": lambda folder: _engine_weights_of_a_hole(folder, small_model(quantization="fp8")),
}


def test_memory_is_not_taken_by_claims(tmp_path: Path) -> None:
    paths = []
    for number, write in enumerate(LIARS.values()):
        (tmp_path / str(number)).mkdir()
        paths.append(str(write(tmp_path / str(number))))
    done = subprocess.run(
        [sys.executable, "-c", OPEN, *paths],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (60, 60)),
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{list(LIARS)[len(lines)]}: {done.stderr[-2000:]}"
    for claim, line in zip(LIARS, lines, strict=True):
        grown, _, message = line.partition(" ")
        assert message != "taken", claim
        assert int(grown) < MOST_BYTES, f"{claim}: {line}"
