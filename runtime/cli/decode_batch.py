"""Run submitted requests to their ends and measure how long their tokens took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from sparsespec.runtime.outputs import OutputDelta, RequestOutput

if TYPE_CHECKING:
    from sparsespec.runtime.llm import LLM

ShowDelta = Callable[[OutputDelta], None]


@dataclass(frozen=True)
class Speed:
    """Wall clock of a batch of requests."""

    prefill_seconds: float  # until the first token of any request
    decode_seconds: float  # from then on
    decoded_tokens: int  # that came from then on

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens per second after the first; None where there was only one."""
        return self.decoded_tokens / self.decode_seconds if self.decoded_tokens else None


@dataclass(frozen=True)
class DecodedBatch:
    """Outputs in the order of submission."""

    outputs: tuple[RequestOutput, ...]
    speed: Speed


def decode_batch(llm: LLM, request_ids: Sequence[int], show: ShowDelta) -> DecodedBatch:
    """Step until the requests have ended, showing what they gain. An interrupt cancels them."""
    arrivals: list[_Arrival] = []
    start = perf_counter()
    with closing(llm.run(request_ids)) as steps:
        for deltas in steps:
            arrivals.append(_Arrival(perf_counter() - start, sum(len(delta.token_ids) for delta in deltas)))
            for delta in deltas:
                show(delta)
    return DecodedBatch(tuple(llm.take_output(request_id) for request_id in request_ids), _speed(arrivals))


@dataclass(frozen=True)
class _Arrival:
    seconds: float
    num_tokens: int


def _speed(arrivals: list[_Arrival]) -> Speed:
    first, *later = (arrival for arrival in arrivals if arrival.num_tokens)
    end = later[-1].seconds if later else first.seconds
    return Speed(first.seconds, end - first.seconds, sum(arrival.num_tokens for arrival in later))
