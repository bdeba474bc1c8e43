"""Results on their way from the device: small tensors copied without waiting, read a step or more later."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sparsespec.runtime.device.step_batch import BlockRows
from sparsespec.runtime.results import SlotResult, TokenLogprobs
from sparsespec.runtime.sampling_params import MAX_LOGPROBS
from sparsespec.runtime.scheduled_step import ScheduledRows, ScheduledStep

NumberT = TypeVar("NumberT")


@dataclass(frozen=True)
class BlockCounts(Generic[NumberT]):
    """Numbers of a block: [S] tensors, or one block's ints. Lengths are those after it; see SlotResult."""

    num_tokens: NumberT  # that join the output
    num_drafts: NumberT
    num_accepted: NumberT
    kv_len: NumberT
    recent_start: NumberT
    num_chosen: NumberT


def packed(counts: BlockCounts[Tensor]) -> Tensor:
    """[S, number of fields], so that one copy brings them all."""
    return torch.stack([getattr(counts, field.name) for field in fields(counts)], dim=1)


@dataclass(frozen=True)
class BlockOutcome:
    """What S blocks produced, on the device or on its way to the host."""

    counts: Tensor  # [S, ...]: BlockCounts, packed
    tokens: Tensor  # [S, K + 1]
    logprobs: Tensor  # [S, K + 1, 1 + MAX_LOGPROBS] of the token, then of the most likely ones; [0] where unasked
    top_ids: Tensor  # [S, K + 1, MAX_LOGPROBS], or [0]


class TorchResults:
    """executor.PendingResults: a copy in pinned memory and the event that completes it."""

    def __init__(self, step: ScheduledStep, rows: tuple[ScheduledRows, ...], outcome: BlockOutcome) -> None:
        self._step = step
        self._rows = rows
        self._host = BlockOutcome(*(_send(getattr(outcome, field.name)) for field in fields(outcome)))
        self._event = torch.cuda.Event() if outcome.tokens.is_cuda else None
        if self._event:
            self._event.record(torch.cuda.current_stream(outcome.tokens.device))

    @property
    def step(self) -> ScheduledStep:
        """See PendingResults."""
        return self._step

    def wait(self) -> dict[int, SlotResult]:
        """See PendingResults."""
        if self._event:
            self._event.synchronize()
        counts, tokens = self._host.counts.tolist(), self._host.tokens.tolist()
        return {
            row.slot: self._slot_result(index, BlockCounts(*counts[index]), tokens[index])
            for index, row in enumerate(self._rows)
        }

    def _slot_result(self, index: int, counts: BlockCounts[int], tokens: list[int]) -> SlotResult:
        row, host = self._rows[index], self._host
        kept = tokens[: counts.num_tokens]
        return SlotResult(
            phase=row.phase,
            tokens=tuple(kept),
            num_drafts=counts.num_drafts,
            num_accepted=counts.num_accepted,
            kv_len=counts.kv_len,
            recent_start=counts.recent_start,
            num_chosen=counts.num_chosen,
            logprobs=_logprobs(kept, host.logprobs[index], host.top_ids[index]) if row.needs.logprobs else (),
        )


def block_logprobs(logits: Tensor, blocks: BlockRows, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """BlockOutcome.logprobs and top_ids; both empty where no block asks for them.

    Of the model's logits as they are, before penalties, masks, temperature and cuts: vLLM's default.
    """
    if not any(row.needs.logprobs for row in blocks.rows):
        return tokens.new_empty(0), tokens.new_empty(0)
    everything = logits[blocks.logits].double().log_softmax(dim=-1)
    top = everything.topk(min(MAX_LOGPROBS, everything.shape[-1]), dim=-1)
    return torch.cat((everything.gather(2, tokens[..., None]), top.values), dim=-1), top.indices


def _send(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.clone()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _logprobs(tokens: list[int], values: Tensor, top_ids: Tensor) -> tuple[TokenLogprobs, ...]:
    rows = zip(tokens, values.tolist(), top_ids.tolist(), strict=False)  # rows beyond the tokens are padding
    return tuple(TokenLogprobs(token, own, tuple(zip(ids, top, strict=True))) for token, (own, *top), ids in rows)
