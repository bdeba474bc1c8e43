"""The runtime: `from sparsespec.runtime import LLM, SamplingParams`.

Names are resolved on first use, so that the host-only modules (request, scheduler, kv_cache) import no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsespec.runtime.async_llm import AsyncLLM
    from sparsespec.runtime.collector import freeze_heap
    from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
    from sparsespec.runtime.llm import LLM
    from sparsespec.runtime.outputs import CompletionOutput, OutputDelta, RequestOutput
    from sparsespec.runtime.sampling_params import SamplingParams

_HOMES = {
    "AsyncLLM": "async_llm",
    "CompletionOutput": "outputs",
    "LLM": "llm",
    "OutputDelta": "outputs",
    "RequestOutput": "outputs",
    "RuntimeConfig": "config",
    "SamplingParams": "sampling_params",
    "SpeculationConfig": "config",
    "freeze_heap": "collector",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "OutputDelta",
    "RequestOutput",
    "RuntimeConfig",
    "SamplingParams",
    "SpeculationConfig",
    "freeze_heap",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
