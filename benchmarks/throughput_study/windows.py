"""Stretches of steady decoding: tokens, steps and seconds."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from sparsespec.runtime.device.graph_executor import GraphExecutor
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import OutputDelta
from sparsespec.runtime.sampling_params import SamplingParams

# Cycles that pass before anything is measured, so that the stagger is full; then until so many have passed in which no
# graph was captured, but no more than the third number.
_WARM_UP_CYCLES, _QUIET_CYCLES, _MOST_CYCLES = 4, 6, 45
# Of an adaptive LLM, in which besides nothing else was chosen: a policy that is slower than predicted is left in them.
_SETTLED_CYCLES = 20


@dataclass(frozen=True)
class Window:
    """Steps that were measured together."""

    num_requests: int
    num_steps: int
    num_tokens: int  # that joined outputs
    seconds: float
    context: float  # tokens of a request, prompt included, on average over requests and window
    num_captured: int = 0  # graphs: each takes the host as long as some ten steps
    collector_seconds: float = 0.0  # of Python's, in which the host does nothing else
    chosen: str = ""  # by an adaptive LLM, for the window's last steps

    @property
    def tokens_per_second(self) -> float:
        """Over all requests."""
        return self.num_tokens / self.seconds

    @property
    def step_ms(self) -> float:
        """Mean."""
        return 1e3 * self.seconds / self.num_steps


class CollectorClock:
    """Adds up what Python's collector takes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def __call__(self, phase: str, _: dict[str, int]) -> None:
        """As gc.callbacks are called."""
        now = time.perf_counter()
        if phase == "stop":
            self.seconds += now - self._started
        self._started = now


@contextmanager
def collector_watched() -> Iterator[CollectorClock]:
    """While it lasts, the clock runs when the collector does."""
    clock = CollectorClock()
    gc.callbacks.append(clock)
    try:
        yield clock
    finally:
        gc.callbacks.remove(clock)


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
        self._pass_cycles(_WARM_UP_CYCLES)

    def settle(self) -> None:
        """After it, until the graphs of the steps that come up are captured, and how they decode is chosen."""
        quiet, enough = 0, _QUIET_CYCLES if self.llm.choice is None else _SETTLED_CYCLES
        for _ in range(_MOST_CYCLES):
            before = self.num_graphs, self.chosen
            self._pass_cycles(1)
            quiet = quiet + 1 if (self.num_graphs, self.chosen) == before else 0
            if quiet == enough:
                return

    @property
    def chosen(self) -> str:
        """How an adaptive LLM decodes now; "" for others."""
        choice = self.llm.choice
        return "" if choice is None else choice.way.summary()

    @property
    def num_graphs(self) -> int:
        """Captured so far."""
        executor = self.llm.executor
        return executor.graphs.num_captured if isinstance(executor, GraphExecutor) else 0

    def _pass_cycles(self, count: int) -> None:
        for _ in range(count * (self.llm.speculation.num_draft_steps + 1)):
            self.step()

    def measure(self, num_steps: int) -> Window:
        """So many more steps. RuntimeError if a request ends in them."""
        before, num_graphs = self.context, self.num_graphs
        finish()
        with collector_watched() as collector:
            started = time.perf_counter()
            deltas = [delta for _ in range(num_steps) for delta in self.step()]
            finish()
            seconds = time.perf_counter() - started
        if any(delta.finish_reason is not None for delta in deltas):
            raise RuntimeError("a request ended inside a measured window: expected all of them to decode throughout")
        tokens = sum(len(delta.token_ids) for delta in deltas)
        return Window(
            num_requests=len(self.lengths),
            num_steps=num_steps,
            num_tokens=tokens,
            seconds=seconds,
            context=(before + self.context) / 2,
            num_captured=self.num_graphs - num_graphs,
            collector_seconds=collector.seconds,
            chosen=self.chosen,
        )

    def end(self) -> None:
        """Cancel them all."""
        for request_id in list(self.lengths):
            self.remove(request_id)
