"""The HTTP server over an LLM whose device computes nothing, in a process of its own that measures itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import uvloop

from host_load import HostOnlyLLM, Load, trained_language
from serving_study.host_pace import Pace, Reading, Stretch
from sparsespec.runtime.serving.http.app import create_app
from sparsespec.runtime.serving.http.server import make_server
from sparsespec.runtime.serving.http.server_config import ServerConfig
from sparsespec.runtime.serving.metrics import ServiceMetrics
from sparsespec.runtime.serving.process import tune_process
from sparsespec.runtime.serving.service import Service
from sparsespec.runtime.serving.service_config import ServiceConfig

AnswerT = TypeVar("AnswerT")

MODEL = "host"  # its name for clients
_END_S = 60  # for a process that has nothing more to do
_SPARE = 8  # requests and connections beyond those of the load


@dataclass(frozen=True)
class MeasuredServer:
    """One that listens on the loopback."""

    port: int
    answers: Connection  # what the process tells

    def pace(self) -> Pace:
        """Waits until all requests of the load have run for a stretch. Raises RuntimeError where the server ends."""
        return _received(self.answers, Pace)


@contextmanager
def measured_server(load: Load, stretch: Stretch) -> Iterator[MeasuredServer]:
    """It is ended with the block. Raises RuntimeError where it does not start."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=serve_and_measure, args=(load, stretch, theirs), daemon=True)
    process.start()
    theirs.close()  # it is the child's alone, whose end is then known here
    try:
        yield MeasuredServer(_received(ours, int), ours)
    finally:
        process.terminate()
        process.join(_END_S)


def _received(answers: Connection, kind: type[AnswerT]) -> AnswerT:
    """The next thing that a process tells."""
    try:
        answer = answers.recv()
    except EOFError:
        raise RuntimeError("the server ended before it was measured") from None
    if not isinstance(answer, kind):
        raise RuntimeError(f"expected the server to tell its {kind.__name__}, found {answer!r}")
    return answer


def serve_and_measure(load: Load, stretch: Stretch, answers: Connection) -> None:
    """Serve as `sparsespec-serve` does; tells the port, and once all requests have run for a stretch, their pace."""
    metrics = ServiceMetrics()
    llm = HostOnlyLLM(trained_language(), load, metrics.steps)
    tune_process()
    uvloop.run(_serve(llm, metrics, _Plan(load.num_requests, stretch), answers))


@dataclass(frozen=True)
class _Plan:
    num_requests: int
    stretch: Stretch


async def _serve(llm: HostOnlyLLM, metrics: ServiceMetrics, plan: _Plan, answers: Connection) -> None:
    num_clients = plan.num_requests + _SPARE
    service = Service(llm, ServiceConfig(max_requests=num_clients), metrics)
    config = ServerConfig(engine_dir=Path(MODEL), max_connections=num_clients)
    with socket.create_server(("127.0.0.1", 0), backlog=num_clients) as listener:
        server = make_server(create_app(service, config.model_name), service, config)
        serving = asyncio.create_task(server.serve([listener]))
        answers.send(listener.getsockname()[1])
        measuring = asyncio.create_task(_measure(service, metrics, plan))
        await asyncio.wait([serving, measuring], return_when=asyncio.FIRST_COMPLETED)
        if measuring.done():
            answers.send(measuring.result())
        await serving  # until it is told to end


async def _measure(service: Service, metrics: ServiceMetrics, plan: _Plan) -> Pace:
    while service.status.running < plan.num_requests:
        await asyncio.sleep(0.05)
    await asyncio.sleep(plan.stretch.settle_s)
    before = _read(service, metrics)
    await asyncio.sleep(plan.stretch.measure_s)
    after = _read(service, metrics)
    if service.status.running < plan.num_requests:
        raise RuntimeError(f"expected {plan.num_requests} streams to the end, found {service.status.running}")
    return after.pace_since(before)


def _read(service: Service, metrics: ServiceMetrics) -> Reading:
    (tokens,) = [family for family in service.metric_families() if family.name == "sparsespec_output_tokens"]
    return Reading.now(metrics.steps.step_seconds.values.num_values, int(tokens.samples[0].value))
