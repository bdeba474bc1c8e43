"""The tensors PillarAttention reads, by the names that the plugin, the network and the runtime share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

TensorT = TypeVar("TensorT")


@dataclass(frozen=True)
class PillarAttentionParams:
    """Constants of the op. head_dim is even; num_heads is a multiple of num_kv_heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    rms_norm_eps: float = 1e-6  # of the QK-norm, where there is one


@dataclass(frozen=True)
class QkNorm(Generic[TensorT]):
    """Weights of the RMSNorm over every query and key head before RoPE (Qwen3). Each [head_dim]."""

    q_norm: TensorT
    k_norm: TensorT


@dataclass(frozen=True)
class StepInputs(Generic[TensorT]):
    """What is the same for every layer of one step. All int32 but rope_table; B = max_batch_size, indexed by slot.

    The host sends row_start, phase, draft_index, score_rows and score_index. The rest is device state: when the host
    plans a step, it does not know these values yet.
    """

    row_start: TensorT  # [B + 1] CSR: slot s owns rows row_start[s] to row_start[s + 1]
    phase: TensorT  # [B] plugins.phase.Phase
    draft_index: TensorT  # [B] first row's position minus kv_len: the draft number, 0 in other phases
    score_rows: TensorT  # [B] how many of the slot's last rows are scored; 0 for none, and in DRAFT
    score_index: TensorT  # [B] where in `scores` the slot's scores go
    kv_len: TensorT  # [B] verified tokens in the cache
    recent_start: TensorT  # [B] first token that every draft row reads
    num_pillars: TensorT  # [B] pillars per layer and KV head, at most min(recent_start, max_budget)
    page_table: TensorT  # [B, max_pages] page of each page_size tokens of the slot
    rope_table: TensorT  # [max_positions, head_dim] cosines of head_dim / 2 frequencies, then their sines; fp32 or fp64


@dataclass(frozen=True)
class LayerInputs(Generic[TensorT]):
    """What one layer owns. The op updates kv_pool and scores in place (aliased in the TensorRT plugin)."""

    kv_pool: TensorT  # [num_pages, 2, num_kv_heads, page_size, head_dim] keys, then values
    pillars: TensorT  # [B, num_kv_heads, max_budget] int32 logical positions, ascending
    scores: TensorT  # [max_scored, num_kv_heads, max_positions] mean attention probability per token
