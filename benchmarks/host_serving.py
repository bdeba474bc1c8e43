"""What serving costs the host: the pace of steps without a server, and with one that streams to every request.

    python benchmarks/host_serving.py --json host_serving.json

The device computes nothing and takes --device_ms for a step, in which other threads may run. Everything else is real:
offline the step loop alone, as AsyncLLM's thread runs it; served also decoding, the service, FastAPI, uvicorn and
sockets, in a process of its own. The clients, in this process, drop what they receive. "period" is the time from a step
to the next, in milliseconds, "cpu" what the process that steps takes of its processors meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import uvloop

from host_load import Language, Load, trained_language
from serving_study.host_pace import Pace, Stretch, measure_offline
from serving_study.host_server import measured_server
from serving_study.raw_streams import pace_under_load
from sparsespec.builder.config_io import add_flags, check_range, check_types, from_flags, option
from sparsespec.builder.errors import InputError
from sparsespec.builder.report import Metric, Report, check_report_path, this_machine
from sparsespec.builder.terminal import run_tool

_MOST_STREAMS = 16_384


@dataclass(frozen=True)
class HostServingConfig:
    """What is measured."""

    streams: tuple[int, ...] = option((64, 256, 512), "requests that run at once, each with a stream of its own")
    device_ms: float = option(5.0, "milliseconds that the device takes for a step")
    k: int = option(8, "tokens drafted before each verification")
    acceptance: float = option(0.93, "chance of a draft once those before it are accepted; 0.93 gives 6.8 tokens for 8")
    prompt_tokens: int = option(80, "tokens of each prompt")
    output_tokens: int = option(6000, "tokens of each answer: more than come while it is measured")
    settle_s: float = option(4.0, "seconds that all requests run before it is measured")
    measure_s: float = option(8.0, "seconds that are measured")
    json: Path | None = option(None, "report to write")

    def __post_init__(self) -> None:
        check_types(self)
        for number in self.streams:
            check_range("streams", number, least=1, most=_MOST_STREAMS)
        for name in ("k", "prompt_tokens", "output_tokens"):
            check_range(name, getattr(self, name), least=1)
        for name in ("device_ms", "settle_s", "measure_s"):
            if not 0 < getattr(self, name) <= 1000:
                raise InputError(f"{name} must be in (0, 1000], found {getattr(self, name)!r}")
        if not 0 <= self.acceptance <= 1:
            raise InputError(f"acceptance must be in [0, 1], found {self.acceptance!r}")

    def load(self, num_streams: int) -> Load:
        """So many requests that begin together and all outlast the measurement."""
        return Load(
            num_requests=num_streams,
            policy="unified",
            k=self.k,
            acceptance=self.acceptance,
            prompt_tokens=(self.prompt_tokens, self.prompt_tokens),
            output_tokens=(self.output_tokens, self.output_tokens),
            chunk_size=max(512, self.k + 1),
            step_s=self.device_ms / 1000,
        )


@dataclass(frozen=True)
class ServingCost:
    """Of so many streams."""

    num_streams: int
    offline: Pace
    served: Pace

    @property
    def throughput_ratio(self) -> float:
        """Tokens per second served over offline."""
        return self.served.tokens_per_second / self.offline.tokens_per_second

    def line(self) -> str:
        """A row of the table."""
        paces = (self.offline, self.served)
        times = "".join(f"{1000 * pace.period_s:9.2f}{1000 * pace.cpu_s:7.2f}" for pace in paces)
        tokens = "".join(f"{pace.tokens_per_second:10.0f}" for pace in paces)
        return f"{self.num_streams:7}{times}{tokens}{self.throughput_ratio:7.3f}"

    def metrics(self) -> tuple[Metric, ...]:
        """As a report tells them."""
        ratio = Metric(f"throughput_ratio_{self.num_streams}", self.throughput_ratio, "served / offline")
        return (*self._of("offline", self.offline), *self._of("served", self.served), ratio)

    def _of(self, way: str, pace: Pace) -> tuple[Metric, ...]:
        name = f"{way}_{self.num_streams}"
        return (
            Metric(f"{name}_period", 1000 * pace.period_s, "ms"),
            Metric(f"{name}_cpu", 1000 * pace.cpu_s, "ms per step"),
            Metric(f"{name}_throughput", pace.tokens_per_second, "tokens/s"),
        )


HEAD = f"{'':7}{'offline':>16}{'served':>16}{'tokens/s':>20}\n{'streams':7}" + "".join(
    f"{name:>{width}}" for name, width in (*((("period", 9), ("cpu", 7)) * 2), ("offline", 10), ("served", 10))
)


def measure(language: Language, load: Load, stretch: Stretch) -> ServingCost:
    """Offline, then served."""
    offline = measure_offline(language, load, stretch)
    with measured_server(load, stretch) as server:
        return ServingCost(load.num_requests, offline, uvloop.run(pace_under_load(server, load)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 or an exit code of `run_tool`."""
    parser = argparse.ArgumentParser(
        prog="host_serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser, HostServingConfig)
    flags = parser.parse_args(argv)
    return run_tool(lambda: _run(from_flags(HostServingConfig, flags)))


def _run(config: HostServingConfig) -> int:
    if config.json is not None:
        check_report_path(config.json)
    machine, language = this_machine("cpu"), trained_language()
    print(f"{machine.platform}, {machine.cpu_count} CPUs, Python {machine.python}; milliseconds a step\n{HEAD}  ratio")
    costs: list[ServingCost] = []
    for number in config.streams:
        costs.append(measure(language, config.load(number), Stretch(config.settle_s, config.measure_s)))
        print(costs[-1].line(), flush=True)
    if config.json is not None:
        Report(
            tool="host_serving",
            version=version("sparsespec"),
            machine=machine,
            config={"HostServingConfig": dataclasses.asdict(config)},
            metrics=tuple(metric for cost in costs for metric in cost.metrics()),
        ).write(config.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
