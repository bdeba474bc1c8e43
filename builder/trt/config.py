"""What TensorRT engines are built with; the `tensorrt` section of config.json and flags of build_engine.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparsespec.builder.config_io import check_range, option, shown
from sparsespec.builder.errors import InputError
from sparsespec.plugins.pillar_attention.inputs import ScoreNormalizer, ScorePlanes

BackendName = Literal["auto", "torch", "tensorrt"]
Verbosity = Literal["layer_names_only", "detailed", "none"]
_MOST_BUILDER_OPT = 5
_MOST_CHARACTERS = 200  # of what a version or a GPU is called


@dataclass(frozen=True)
class TensorRTConfig:
    """How TensorRT engines are built; an engine serves drafters that need its score_planes, or none."""

    score_planes: ScorePlanes = option("diagonal", "what verified rows leave to choose pillars by; docs/tensorrt.md")
    score_normalizer: ScoreNormalizer = option("draft", "what scores are over; as at run time")
    aliased_io: bool = option(True, "tell TensorRT what is updated in place; off where it copies the KV pool for that")
    opt_batch_size: int | None = option(None, "requests that engines are tuned for; max_batch_size when not given")
    builder_opt: int = option(3, "TensorRT's optimisation level, 0 to 5: higher builds longer")
    profiling_verbosity: Verbosity = option("layer_names_only", "what engines keep about their layers, for profilers")
    timing_cache: Path | None = option(None, "file of TensorRT's timings: read if it is there, and written")
    plugin_library: Path | None = option(None, "libsparsespec_plugins.so; the one beside the package when not given")

    def __post_init__(self) -> None:
        _check_tuning(self.opt_batch_size, self.builder_opt)


@dataclass(frozen=True)
class TensorRTBuild:
    """What became of it: an engine runs on the GPU and under the TensorRT that built it, and nowhere else."""

    version: str  # TensorRT's
    gpu: str  # its name
    compute_capability: str  # such as "9.0"
    score_planes: ScorePlanes
    score_normalizer: ScoreNormalizer
    aliased_io: bool
    opt_batch_size: int | None
    builder_opt: int
    profiling_verbosity: Verbosity

    def __post_init__(self) -> None:
        for name in ("version", "gpu", "compute_capability"):
            _check_name(name, getattr(self, name))
        _check_tuning(self.opt_batch_size, self.builder_opt)

    @property
    def config(self) -> TensorRTConfig:
        """What decides the engines' inputs, outputs and profiles."""
        return TensorRTConfig(self.score_planes, self.score_normalizer, self.aliased_io, self.opt_batch_size)


def _check_tuning(opt_batch_size: int | None, builder_opt: int) -> None:
    if opt_batch_size is not None:
        check_range("opt_batch_size", opt_batch_size, least=1)
    check_range("builder_opt", builder_opt, least=0, most=_MOST_BUILDER_OPT)


def _check_name(key: str, name: str) -> None:
    """Errors quote it, and they are one line."""
    if not 0 < len(name) <= _MOST_CHARACTERS or not name.isprintable():
        raise InputError(f"{key}: expected 1 to {_MOST_CHARACTERS} printable characters, found {shown(name)}")
