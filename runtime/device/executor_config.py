"""What an executor is given beside the engine and the drafter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsespec.runtime.config import AttentionName, GraphsName


@dataclass(frozen=True)
class ExecutorConfig:
    """Memory that the executor takes, slots and KV pages, and whose attention it runs."""

    max_batch_size: int
    num_pages: int
    attention: AttentionName = "auto"
    cuda_graphs: GraphsName = "auto"
    num_host_pages: int = 0  # KV pages in host memory
    plugin_library: Path | None = None  # the one beside the package when None
