"""What a step costs the host, in microseconds by verb, on a device that answers at once.

    python benchmarks/host_step.py --json host_step.json

Scheduler, KV-cache manager, answers and tokenizer are the real ones; requests of --prompt_tokens and --output_tokens
join as others end. "schedule" and "update" are the scheduler's. "prepare" packs the numbers of a step of fixed shapes
and finds its shape, "results" makes of the device's numbers what the scheduler takes, both as GraphExecutor does.
"loop" is what else LLM.step does, and "step" is all of these: the time that the device may have to wait for. "text" is
what decoding the step's tokens takes whoever wants it, in another thread behind AsyncLLM. Calls of CUDA, which copy
numbers and start graphs, are not made here, and what the device would compute is not timed. Times are means over a
cycle, the median one of all, and "p99" is the slowest step but 1%.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter_ns
from typing import Literal

from host_load import FullHouse, HostOnlyLLM, Language, Load, trained_language
from sparsespec.builder.config_io import add_flags, check_range, from_flags, option
from sparsespec.builder.errors import InputError
from sparsespec.builder.report import Metric, Report, check_report_path, this_machine
from sparsespec.builder.terminal import run_tool
from sparsespec.runtime.collector import freeze_heap
from sparsespec.runtime.tracing import HostTrace

Way = Literal["unified", "lockstep", "plain"]
WAYS: tuple[Way, ...] = ("unified", "lockstep", "plain")
# Spans by what they are called here; of those that are not the host's work, one is made up and one the trace's own.
_SPANS = {"schedule": ("schedule",), "prepare": ("prepare",), "results": ("sample", "wait"), "update": ("update",)}
_NOT_THE_HOSTS = ("execute", "count")


@dataclass(frozen=True)
class HostStepConfig:
    """What is measured."""

    requests: tuple[int, ...] = option((1, 64, 256, 512), "requests that run at once")
    ways: tuple[str, ...] = option(WAYS, "unified, lockstep or plain")
    k: int = option(8, "tokens drafted before each verification")
    acceptance: float = option(0.93, "chance of a draft once those before it are accepted; 0.93 gives 6.8 tokens for 8")
    prompt_tokens: tuple[int, ...] = option((2048, 6144), "fewest and most")
    output_tokens: tuple[int, ...] = option((512, 2048), "fewest and most")
    chunk_size: int = option(8192, "most prompt tokens in a step")
    num_steps: int = option(300, "steps that are timed, once all requests decode")
    json: Path | None = option(None, "report to write")

    def __post_init__(self) -> None:
        check_range("k", self.k, least=1)
        check_range("num_steps", self.num_steps, least=self.k + 1)
        check_range("chunk_size", self.chunk_size, least=self.k + 1)
        for number in self.requests:
            check_range("requests", number, least=1)
        for name in ("prompt_tokens", "output_tokens"):
            _check_bounds(name, getattr(self, name))
        unknown = [way for way in self.ways if way not in WAYS]
        if unknown:
            raise InputError(f"ways: expected some of {', '.join(WAYS)}, found {unknown[0]!r}")
        if not 0 <= self.acceptance <= 1:
            raise InputError(f"acceptance must be in [0, 1], found {self.acceptance}")

    def loads(self) -> Iterator[tuple[str, Load]]:
        """Everything to measure, with its way."""
        for way in self.ways:
            for number in self.requests:
                yield way, self._load(way, number)

    def _load(self, way: str, number: int) -> Load:
        prompt, output = self.prompt_tokens, self.output_tokens
        return Load(
            num_requests=number,
            policy="lockstep" if way == "lockstep" else "unified",
            k=0 if way == "plain" else self.k,
            acceptance=self.acceptance,
            prompt_tokens=(prompt[0], prompt[1]),
            output_tokens=(output[0], output[1]),
            chunk_size=self.chunk_size,
        )


@dataclass(frozen=True)
class StepCost:
    """What a step took, in microseconds, and what it held; or the means over several."""

    schedule: float
    prepare: float
    results: float
    update: float
    loop: float
    text: float
    drafts: float  # rows
    verifications: float
    tokens: float  # that answers gained

    @property
    def step(self) -> float:
        """On the stepping thread."""
        return self.schedule + self.prepare + self.results + self.update + self.loop

    @staticmethod
    def mean(costs: Sequence[StepCost]) -> StepCost:
        """Of some steps."""
        names = [field.name for field in dataclasses.fields(StepCost)]
        return StepCost(*(sum(getattr(each, name) for each in costs) / len(costs) for name in names))


@dataclass(frozen=True)
class HostCost:
    """A load's steps."""

    way: str
    num_requests: int
    typical: StepCost  # the mean over the cycle whose time is the median of all cycles'
    slow_step: float  # microseconds: 99th percentile

    @staticmethod
    def of(way: str, load: Load, steps: Sequence[StepCost]) -> HostCost:
        """Steps in order; a cycle is k + 1 of them, so that each has its share of drafts and verifications."""
        size = load.k + 1
        cycles = [StepCost.mean(steps[first : first + size]) for first in range(0, len(steps) - size + 1, size)]
        by_time = sorted(cycles, key=lambda cycle: cycle.step)
        slow_step = sorted(each.step for each in steps)[len(steps) * 99 // 100]
        return HostCost(way, load.num_requests, by_time[len(by_time) // 2], slow_step)

    def line(self) -> str:
        """A row of the table."""
        cost = self.typical
        verbs = (cost.schedule, cost.prepare, cost.results, cost.update, cost.loop)
        values = (*verbs, cost.step, self.slow_step, cost.text, cost.drafts, cost.verifications, cost.tokens)
        return f"{self.way:9}{self.num_requests:9}" + "".join(f"{value:10.0f}" for value in values)

    def metrics(self) -> tuple[Metric, ...]:
        """As a report tells them."""
        name = f"{self.way}_{self.num_requests}"
        cost = self.typical
        times = {verb: getattr(cost, verb) for verb in (*_SPANS, "loop", "text")}
        times |= {"step": cost.step, "step_p99": self.slow_step}
        counts = {"drafts": cost.drafts, "verifications": cost.verifications, "tokens": cost.tokens}
        return (
            *(Metric(f"{name}_{verb}", value, "us") for verb, value in times.items()),
            *(Metric(f"{name}_{what}", value, "per step") for what, value in counts.items()),
        )


HEAD = f"{'way':9}{'requests':>9}" + "".join(
    f"{name:>10}" for name in (*_SPANS, "loop", "step", "p99", "text", "drafts", "verifies", "tokens")
)


def measure(language: Language, way: str, load: Load, num_steps: int) -> HostCost:
    """Fill the batch, then time steps."""
    trace = HostTrace()
    llm = HostOnlyLLM(language, load, trace)
    freeze_heap()
    house = FullHouse(llm, load)
    while not house.is_full:
        house.replace_ended(house.step())
    for _ in range(load.k + 1):  # the last to join waits for its place in the stagger
        house.replace_ended(house.step())
    return HostCost.of(way, load, [_timed_step(house, trace, load.k + 1) for _ in range(num_steps)])


def _timed_step(house: FullHouse, trace: HostTrace, rows_each: int) -> StepCost:
    """rows_each: of a verification."""
    trace.clear()
    start = perf_counter_ns()
    deltas = house.step()
    stepped = perf_counter_ns()
    for delta in deltas:
        _ = delta.text  # decodes
    read = perf_counter_ns()
    house.replace_ended(deltas)
    spent = {span.name: span.duration_us for span in trace.spans}
    verbs = {verb: sum(spent[name] for name in names) for verb, names in _SPANS.items()}
    other = sum(spent[name] for name in _NOT_THE_HOSTS)
    (counted,) = trace.counts
    return StepCost(
        schedule=verbs["schedule"],
        prepare=verbs["prepare"],
        results=verbs["results"],
        update=verbs["update"],
        loop=(stepped - start) / 1000 - sum(verbs.values()) - other,
        text=(read - stepped) / 1000,
        drafts=counted.step.draft_rows,
        verifications=counted.step.verify_rows / rows_each,
        tokens=sum(len(delta.token_ids) for delta in deltas),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 or an exit code of `run_tool`."""
    parser = argparse.ArgumentParser(
        prog="host_step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser, HostStepConfig)
    flags = parser.parse_args(argv)
    return run_tool(lambda: _run(from_flags(HostStepConfig, flags)))


def _run(config: HostStepConfig) -> int:
    if config.json is not None:
        check_report_path(config.json)
    machine, language = this_machine("cpu"), trained_language()
    print(f"{machine.platform}, {machine.cpu_count} CPUs, Python {machine.python}; microseconds a step\n{HEAD}")
    costs: list[HostCost] = []
    for way, load in config.loads():
        costs.append(measure(language, way, load, config.num_steps))
        print(costs[-1].line(), flush=True)
    if config.json is not None:
        Report(
            tool="host_step",
            version=version("sparsespec"),
            machine=machine,
            config={"HostStepConfig": dataclasses.asdict(config)},
            metrics=tuple(metric for cost in costs for metric in cost.metrics()),
        ).write(config.json)
    return 0


def _check_bounds(name: str, bounds: tuple[int, ...]) -> None:
    if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
        raise InputError(f"{name} must be two numbers, fewest and most, from 1 on; found {bounds}")


if __name__ == "__main__":
    raise SystemExit(main())
