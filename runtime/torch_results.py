"""Results on their way from the device: small tensors copied without waiting, read a step or more later."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.runtime.results import SlotResult, TokenLogprobs
from sparsespec.runtime.sampling_params import MAX_LOGPROBS
from sparsespec.runtime.scheduler import ScheduledRows, ScheduledStep
from sparsespec.runtime.step_batch import BlockRows


@dataclass(frozen=True)
class BlockOutcome:
    """What S blocks produced, on the device or on its way to the host."""

    tokens: Tensor  # [S, K + 1]
    num_tokens: Tensor  # [S] of them, those that join the output
    num_accepted: Tensor  # [S]
    kv_len: Tensor  # [S]
    recent_start: Tensor  # [S]
    num_pillars: Tensor  # [S]
    logprobs: Tensor  # [S, K + 1, 1 + MAX_LOGPROBS] of the token, then of the most likely ones; [0] where unasked
    top_ids: Tensor  # [S, K + 1, MAX_LOGPROBS], or [0]


class TorchResults:
    """runtime.executor.PendingResults: a copy in pinned memory and the event that completes it."""

    def __init__(self, step: ScheduledStep, rows: tuple[ScheduledRows, ...], outcome: BlockOutcome) -> None:
        self._step = step
        self._rows = rows
        self._copies = [_send(tensor) for tensor in vars(outcome).values()]
        self._event = torch.cuda.Event() if outcome.tokens.is_cuda else None
        if self._event:
            self._event.record()

    @property
    def step(self) -> ScheduledStep:
        """See PendingResults."""
        return self._step

    def wait(self) -> dict[int, SlotResult]:
        """See PendingResults."""
        if self._event:
            self._event.synchronize()
        columns = [copy.tolist() for copy in self._copies]
        return {row.slot: _slot_result(row, columns, index) for index, row in enumerate(self._rows)}


def block_logprobs(logits: Tensor, blocks: BlockRows, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """BlockOutcome.logprobs and top_ids; both empty where no block asks for them."""
    if not any(row.wants_logprobs for row in blocks.rows):
        return tokens.new_empty(0), tokens.new_empty(0)
    everything = logits[blocks.logits].double().log_softmax(dim=-1)
    top = everything.topk(min(MAX_LOGPROBS, everything.shape[-1]), dim=-1)
    return torch.cat((everything.gather(2, tokens[..., None]), top.values), dim=-1), top.indices


def _send(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.clone()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _slot_result(row: ScheduledRows, columns: list[list], index: int) -> SlotResult:  # type: ignore[type-arg]
    tokens, num_tokens, num_accepted, kv_len, recent_start, num_pillars, logprobs, top_ids = columns
    count = num_tokens[index]
    told = range(count) if row.wants_logprobs else range(0)
    return SlotResult(
        phase=row.phase,
        tokens=tuple(tokens[index][:count]),
        num_accepted=num_accepted[index],
        kv_len=kv_len[index],
        recent_start=recent_start[index],
        num_pillars=num_pillars[index],
        logprobs=tuple(
            _token_logprobs(tokens[index][place], logprobs[index][place], top_ids[index][place]) for place in told
        ),
    )


def _token_logprobs(token: int, values: list[float], top_ids: list[int]) -> TokenLogprobs:
    return TokenLogprobs(token, values[0], tuple(zip(top_ids, values[1:], strict=True)))
