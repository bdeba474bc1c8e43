"""What the device knows about every slot; only kernels of the step read and change it, in stream order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.builder.build_config import ADDRESS_ALIGNMENT, BuildConfig
from sparsespec.builder.engine_dir import TORCH_DTYPES
from sparsespec.builder.model_config import ModelConfig
from sparsespec.runtime.request import RequestSpec
from sparsespec.runtime.sampling_params import MAX_STOP_TOKEN_IDS
from sparsespec.runtime.scheduled_step import PageGrant


@dataclass(frozen=True)
class SlotState:
    """Per-slot tensors, B = max_batch_size. Written by prepare (on admission) and by sample (drafts, then commit)."""

    token_ids: Tensor  # [B, max_positions + 1] int64: prompt, accepted tokens, this cycle's drafts, one more
    kv_len: Tensor  # [B] int32: verified tokens in the cache; token_ids[kv_len] is the next to be processed
    end_len: Tensor  # [B] int32: kv_len stops here
    recent_start: Tensor  # [B] int32
    num_staying: Tensor  # [B] int32
    num_moving: Tensor  # [B] int32
    pillars: Tensor  # [num_layers, B, num_kv_heads, max_pillars] int32
    lookup_budget: Tensor  # [B] int32: the budget's part for them
    num_lookups: Tensor  # [B] int32
    lookups: Tensor  # [B, max_lookups] int32, at least one wide
    num_drafts: Tensor  # [B] int32: drafts to verify; fewer than were scheduled where a drafter found none
    draft_lse: Tensor  # [num_layers, B, k, num_heads]: see LayerInputs
    score_history: Tensor  # [num_layers, B, num_kv_heads, scored_positions], or empty where no ranking keeps it
    page_table: Tensor  # [B, max_pages] int32
    # [B, k, vocab_size]: the distribution each draft was drawn from, the largest by far; [B, k, 0] with coupling
    # gumbel, which has no use for it
    draft_probs: Tensor
    prompt_len: Tensor  # [B] int64
    seed: Tensor  # [B] int64
    repetition_penalty: Tensor  # [B]
    presence_penalty: Tensor  # [B]
    frequency_penalty: Tensor  # [B]
    temperature: Tensor  # [B]
    min_p: Tensor  # [B]
    top_k: Tensor  # [B] int64, 0 for all
    top_p: Tensor  # [B]
    min_len: Tensor  # [B] int64: no stop token at positions before this
    stop_token_ids: Tensor  # [B, MAX_STOP_TOKEN_IDS] int64, padded by repetition

    def admit(self, slot: int, spec: RequestSpec) -> None:
        """Start a slot with a request's prompt and parameters."""
        prompt, params = spec.prompt_token_ids, spec.params
        _fill(self.token_ids[slot, : len(prompt)], prompt)
        for tensor in (self.kv_len, self.recent_start, self.num_staying, self.num_moving, self.num_lookups):
            tensor[slot] = 0
        self.end_len[slot] = spec.end_len
        self.prompt_len[slot] = len(prompt)
        self.seed[slot] = spec.seed
        self.repetition_penalty[slot] = params.repetition_penalty
        self.presence_penalty[slot] = params.presence_penalty
        self.frequency_penalty[slot] = params.frequency_penalty
        self.temperature[slot] = params.temperature
        self.min_p[slot] = params.min_p
        self.top_k[slot] = params.top_k
        self.top_p[slot] = params.top_p
        self.min_len[slot] = len(prompt) + params.min_tokens if spec.stop_token_ids else 0
        stops = spec.stop_token_ids or (0,)
        padded = [stops[index % len(stops)] for index in range(self.stop_token_ids.shape[1])]
        _fill(self.stop_token_ids[slot], padded)

    def grant(self, grant: PageGrant) -> None:
        """Extend a slot's page table."""
        _fill(self.page_table[grant.slot, grant.first : grant.first + len(grant.pages)], grant.pages)


def _fill(row: Tensor, numbers: Sequence[int]) -> None:
    """With numbers from the host, which does not wait."""
    row.copy_(pinned(numbers, row.dtype, row.device), non_blocking=True)


def pinned(numbers: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the host, from where a copy to the device does not make the host wait."""
    return torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")


def exact_dtype(build: BuildConfig) -> torch.dtype:
    """In which sums and distributions are kept."""
    return torch.float64 if build.dtype == "float64" else torch.float32


def score_dtype(build: BuildConfig) -> torch.dtype:
    """In which scores are kept: 16-bit engines have float16 ones, whose bytes PillarSelect has to read."""
    return torch.float16 if build.element_size == 2 else exact_dtype(build)


def kv_dtype(build: BuildConfig) -> torch.dtype:
    """In which keys and values are kept."""
    return torch.float8_e4m3fn if build.kv_cache_dtype == "fp8" else TORCH_DTYPES[build.dtype]


@dataclass(frozen=True)
class SlotLimits:
    """Run-time sizes, within the build's."""

    max_batch_size: int
    draft_len: int
    max_lookups: int
    score_history: bool
    draft_probs: bool


def make_slot_state(model: ModelConfig, build: BuildConfig, limits: SlotLimits, device: torch.device) -> SlotState:
    """Zeroed state for limits.max_batch_size slots."""
    positions, size = build.max_positions, limits.max_batch_size
    exact = exact_dtype(build)

    def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    # No tensor that a plugin reads may be empty: TensorRT has no place for those.
    return SlotState(
        token_ids=zeros(size, positions + 1, dtype=torch.int64),
        kv_len=zeros(size),
        end_len=zeros(size),
        recent_start=zeros(size),
        num_staying=zeros(size),
        num_moving=zeros(size),
        pillars=zeros(model.num_layers, size, model.num_kv_heads, build.max_pillars),
        lookup_budget=zeros(size),
        num_lookups=zeros(size),
        lookups=zeros(size, max(1, limits.max_lookups)),
        num_drafts=zeros(size) + limits.draft_len,
        draft_lse=_aligned_layers(model.num_layers, (size, max(1, limits.draft_len), model.num_heads), exact, device),
        score_history=zeros(
            model.num_layers,
            size if limits.score_history else 0,
            model.num_kv_heads,
            build.scored_positions,
            dtype=exact,
        ),
        page_table=zeros(size, build.max_pages),
        draft_probs=zeros(size, limits.draft_len, model.vocab_size if limits.draft_probs else 0, dtype=exact),
        prompt_len=zeros(size, dtype=torch.int64),
        seed=zeros(size, dtype=torch.int64),
        repetition_penalty=zeros(size, dtype=exact),
        presence_penalty=zeros(size, dtype=exact),
        frequency_penalty=zeros(size, dtype=exact),
        temperature=zeros(size, dtype=exact),
        min_p=zeros(size, dtype=exact),
        top_k=zeros(size, dtype=torch.int64),
        top_p=zeros(size, dtype=exact),
        min_len=zeros(size, dtype=torch.int64),
        stop_token_ids=zeros(size, MAX_STOP_TOKEN_IDS, dtype=torch.int64),
    )


def _aligned_layers(num_layers: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros [num_layers, *shape] of which every layer is contiguous and begins where TensorRT takes an address."""
    count, unit = math.prod(shape), ADDRESS_ALIGNMENT // dtype.itemsize
    padded = torch.zeros(num_layers, -(-count // unit) * unit, dtype=dtype, device=device)
    layers: Tensor = padded[:, :count].unflatten(1, shape)
    return layers
