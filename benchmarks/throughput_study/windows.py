"""Stretches of steady decoding: tokens, steps and seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import OutputDelta
from sparsespec.runtime.sampling_params import SamplingParams

# Cycles that pass before anything is measured, so that the graphs of usual steps are captured and the stagger is full.
_WARM_UP_CYCLES = 4


@dataclass(frozen=True)
class Window:
    """Steps that were measured together."""

    num_requests: int
    num_steps: int
    num_tokens: int  # that joined outputs
    seconds: float
    context: float  # tokens of a request, prompt included, on average over requests and window

    @property
    def tokens_per_second(self) -> float:
        """Over all requests."""
        return self.num_tokens / self.seconds

    @property
    def step_ms(self) -> float:
        """Mean."""
        return 1e3 * self.seconds / self.num_steps


def finish() -> None:
    """Until a GPU, if there is one, has nothing left to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Load:
    """Requests that an LLM decodes together, and how long they are."""

    def __init__(self, llm: LLM, prompts: Sequence[Sequence[int]], params: SamplingParams) -> None:
        """Submits them all."""
        self.llm = llm
        self.lengths: dict[int, int] = {}
        self._prompt_lens: dict[int, int] = {}
        for prompt in prompts:
            self.add(prompt, params)

    @property
    def context(self) -> float:
        """Mean tokens of a request, prompt included."""
        return sum(self.lengths.values()) / len(self.lengths)

    def add(self, prompt: Sequence[int], params: SamplingParams) -> int:
        """One more request; its id."""
        request_id = self.llm.add_request(list(prompt), params)
        self.lengths[request_id] = self._prompt_lens[request_id] = len(prompt)
        return request_id

    def remove(self, request_id: int) -> None:
        """Cancel a request."""
        self.llm.forget(request_id)
        self.lengths.pop(request_id)

    def step(self) -> list[OutputDelta]:
        """One step of the LLM."""
        deltas = self.llm.step()
        for delta in deltas:
            self.lengths[delta.request_id] += len(delta.token_ids)
        return deltas

    def warm_up(self) -> None:
        """Until every request decodes, and some cycles more."""
        while any(self.lengths[each] == self._prompt_lens[each] for each in self.lengths):
            self.step()
        for _ in range(_WARM_UP_CYCLES * (self.llm.speculation.num_draft_steps + 1)):
            self.step()

    def measure(self, num_steps: int) -> Window:
        """So many more steps. RuntimeError if a request ends in them."""
        before = self.context
        finish()
        started = time.perf_counter()
        deltas = [delta for _ in range(num_steps) for delta in self.step()]
        finish()
        seconds = time.perf_counter() - started
        if any(delta.finish_reason is not None for delta in deltas):
            raise RuntimeError("a request ended inside a measured window: expected all of them to decode throughout")
        tokens = sum(len(delta.token_ids) for delta in deltas)
        return Window(len(self.lengths), num_steps, tokens, seconds, (before + self.context) / 2)

    def end(self) -> None:
        """Cancel them all."""
        for request_id in list(self.lengths):
            self.remove(request_id)
