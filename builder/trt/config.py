"""What TensorRT engines are built with; the `tensorrt` section of config.json and flags of build_engine.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparsespec.builder.config_io import check_range, option
from sparsespec.plugins.pillar_attention.inputs import ScoreNormalizer, ScorePlanes

BackendName = Literal["auto", "torch", "tensorrt"]
Verbosity = Literal["layer_names_only", "detailed", "none"]
_MOST_BUILDER_OPT = 5


@dataclass(frozen=True)
class TensorRTConfig:
    """How TensorRT engines are built; an engine serves drafters that need its score_planes, or none."""

    score_planes: ScorePlanes = option("diagonal", "what verified rows leave to choose pillars by; docs/tensorrt.md")
    score_normalizer: ScoreNormalizer = option("draft", "what scores are over; as at run time")
    opt_batch_size: int | None = option(None, "requests that engines are tuned for; max_batch_size when not given")
    builder_opt: int = option(3, "TensorRT's optimisation level, 0 to 5: higher builds longer")
    profiling_verbosity: Verbosity = option("layer_names_only", "what engines keep about their layers, for profilers")
    timing_cache: Path | None = option(None, "file of TensorRT's timings: read if it is there, and written")
    plugin_library: Path | None = option(None, "libsparsespec_plugins.so; the one beside the package when not given")

    def __post_init__(self) -> None:
        if self.opt_batch_size is not None:
            check_range("opt_batch_size", self.opt_batch_size, least=1)
        check_range("builder_opt", self.builder_opt, least=0, most=_MOST_BUILDER_OPT)


@dataclass(frozen=True)
class TensorRTBuild:
    """What became of it: an engine runs on the GPU and under the TensorRT that built it, and nowhere else."""

    version: str  # TensorRT's
    gpu: str  # its name
    compute_capability: str  # such as "9.0"
    score_planes: ScorePlanes
    score_normalizer: ScoreNormalizer
    opt_batch_size: int | None
    builder_opt: int
    profiling_verbosity: Verbosity

    @property
    def config(self) -> TensorRTConfig:
        """What decides the engines' inputs, outputs and profiles."""
        return TensorRTConfig(self.score_planes, self.score_normalizer, self.opt_batch_size)
