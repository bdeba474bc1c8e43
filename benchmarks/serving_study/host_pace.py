"""How fast steps follow one another, and what they cost the processor: of an LLM that nobody serves."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic, process_time

from host_load import HostOnlyLLM, Language, Load
from sparsespec.runtime.collector import freeze_heap
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.tracing import NoRecorder


@dataclass(frozen=True)
class Stretch:
    """When is measured: while every request of a load decodes."""

    settle_s: float  # seconds that pass before
    measure_s: float


@dataclass(frozen=True)
class Pace:
    """Of a stretch."""

    period_s: float  # from a step to the next
    cpu_s: float  # of all threads of the process, for a step
    tokens_per_second: float


@dataclass(frozen=True)
class Reading:
    """Steps and tokens of answers so far, and the clocks of the process that counts them."""

    num_steps: int
    num_tokens: int
    wall_s: float
    cpu_s: float

    @staticmethod
    def now(num_steps: int, num_tokens: int) -> Reading:
        """In the process that steps."""
        return Reading(num_steps, num_tokens, monotonic(), process_time())

    def pace_since(self, before: Reading) -> Pace:
        """Raises ValueError where no step has ended between them."""
        num_steps, seconds = self.num_steps - before.num_steps, self.wall_s - before.wall_s
        if num_steps == 0:
            raise ValueError(f"expected steps, found none within {seconds:.1f} s")
        cpu_s = (self.cpu_s - before.cpu_s) / num_steps
        return Pace(seconds / num_steps, cpu_s, (self.num_tokens - before.num_tokens) / seconds)


def load_prompt(number: int, load: Load) -> list[int]:
    """Of the load's request of that number."""
    return [number % 200 + 1] * load.prompt_tokens[0]


def measure_offline(language: Language, load: Load, stretch: Stretch) -> Pace:
    """Steps one after another, as AsyncLLM's thread makes them; nobody reads what they bring."""
    llm = HostOnlyLLM(language, load, NoRecorder())
    freeze_heap()
    params = SamplingParams(max_tokens=load.output_tokens[0], temperature=0.0, ignore_eos=True)
    for number in range(load.num_requests):
        llm.add_request(load_prompt(number, load), params)
    before = _step_for(llm, stretch.settle_s, Reading.now(0, 0))
    after = _step_for(llm, stretch.measure_s, before)
    if llm.status.num_running < load.num_requests:
        raise RuntimeError(f"expected {load.num_requests} requests to the end, found {llm.status.num_running}")
    return after.pace_since(before)


def _step_for(llm: HostOnlyLLM, seconds: float, before: Reading) -> Reading:
    num_steps, num_tokens, end = before.num_steps, before.num_tokens, monotonic() + seconds
    while monotonic() < end:
        num_tokens += sum(len(delta.token_ids) for delta in llm.advance())
        num_steps += 1
    return Reading.now(num_steps, num_tokens)
