"""Whose ops run: the plugins' where a GPU serves a 16-bit engine, the references' everywhere else."""

from __future__ import annotations

from pathlib import Path

import torch

from sparsespec.builder.decoder import attention_params
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.errors import InputError
from sparsespec.builder.model_config import ModelConfig
from sparsespec.plugins.library import PluginsUnavailableError, plugin_host_path, plugin_library_path
from sparsespec.plugins.limits import MAX_BLOCK_ROWS, MAX_SLOTS, serves_rows, unserved
from sparsespec.plugins.plugin_host import PluginError, PluginLibrary
from sparsespec.runtime.device.attention_ops import AttentionOps, OracleAttention, ReferenceAttention
from sparsespec.runtime.device.drafter import Drafter
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.plugin_decoder_ops import PluginOps
from sparsespec.runtime.device.plugin_ops import PluginAttention
from sparsespec.runtime.device.torch_ops import TorchOps

_EVERYWHERE = "--attention reference works everywhere"


def choose_attention(
    config: ExecutorConfig, engine: EngineConfig, drafter: Drafter, device: torch.device
) -> AttentionOps:
    """What `config.attention` means here.

    Raises InputError where plugins are asked for, or are what auto takes on this device, and cannot be had.
    """
    served = device.type == "cuda" and engine.build.element_size == 2
    choice = config.attention
    if choice == "reference" or (choice == "auto" and (drafter.needs.oracle or not served)):
        return OracleAttention() if drafter.needs.oracle else ReferenceAttention()
    _check(config.max_batch_size, engine, drafter, device)
    plugins = _plugins(config.plugin_library)
    _try_on(device, plugins, engine)
    return plugins


def choose_decoder_ops(attention: AttentionOps, model: ModelConfig, device: torch.device) -> TorchOps:
    """The decoder's ops beside this attention: by the same plugins, but for models whose rows they do not take."""
    if isinstance(attention, PluginAttention) and serves_rows(model.hidden_size, model.intermediate_size):
        return PluginOps(attention, attention.library, _num_multiprocessors(device))
    return TorchOps(attention)


def _num_multiprocessors(device: torch.device) -> int:
    """0 without a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


def _check(num_slots: int, engine: EngineConfig, drafter: Drafter, device: torch.device) -> None:
    model, build = engine.model, engine.build
    block_rows = drafter.config.draft_len + 1
    _expect(device.type == "cuda", "a CUDA device", device.type)
    _expect(build.element_size == 2, "an engine of bfloat16 or float16", build.dtype)
    _expect(not drafter.needs.oracle, "a drafter whose pillars are chosen before its rows run", drafter.config.drafter)
    reason = unserved(model.head_dim, model.num_heads // model.num_kv_heads, build.page_size)
    if reason is not None:
        raise InputError(f"attention plugins: {reason}; {_EVERYWHERE}")
    _expect(block_rows <= MAX_BLOCK_ROWS, f"at most {MAX_BLOCK_ROWS} rows (k + 1) in a verification", block_rows)
    _expect(num_slots <= MAX_SLOTS, f"max_batch_size of at most {MAX_SLOTS}", num_slots)


def _plugins(library: Path | None) -> PluginAttention:
    try:
        return PluginAttention(PluginLibrary(library or plugin_library_path(), plugin_host_path()))
    except (PluginsUnavailableError, PluginError) as error:
        raise InputError(f"attention plugins: {error}\n{_EVERYWHERE}") from error


def _try_on(device: torch.device, plugins: PluginAttention, engine: EngineConfig) -> None:
    """Nothing but a launch tells whether the library has programs for this GPU."""
    try:
        plugins.try_on(device, attention_params(engine.model, engine.build.page_size))
    except PluginError as error:
        major, minor = torch.cuda.get_device_capability(device)
        found = f"{torch.cuda.get_device_name(device)}, of compute capability {major}.{minor}"
        raise InputError(f"attention plugins: do not run on {found}: {error}\n{_EVERYWHERE}") from error


def _expect(condition: bool, expected: str, found: object) -> None:
    if not condition:
        raise InputError(f"attention plugins: expected {expected}, found {found}; {_EVERYWHERE}")
