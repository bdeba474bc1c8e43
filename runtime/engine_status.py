"""How full an engine is. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStatus:
    """Answers, one for each of a request's n, and pages of the device's KV cache."""

    num_running: int
    num_waiting: int
    num_pages: int
    num_used_pages: int

    @property
    def kv_cache_usage(self) -> float:
        """Share of the pages that hold something, 0 to 1."""
        return self.num_used_pages / self.num_pages
