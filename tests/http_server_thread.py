"""The HTTP server in a thread of its own, for tests that are its clients."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import FastAPI

from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.serving.http.server import GracefulServer, make_server
from sparsespec.runtime.serving.http.server_config import ServerConfig
from sparsespec.runtime.serving.metrics import ServiceMetrics
from sparsespec.runtime.serving.service import Service
from sparsespec.runtime.serving.service_config import ServiceConfig

SPECULATION = SpeculationConfig(k=4, min_budget=64)
WAIT_S = 120  # for what comes at once unless something is broken


@dataclass(frozen=True)
class RunningServer:
    """Its address, and what lies behind it."""

    port: int
    llm: LLM
    server: GracefulServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        """A connection to say anything on."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)


@contextmanager
def running_server(
    engine: LoadedEngine,
    make_app: Callable[[Service, str], FastAPI],
    config: ServerConfig,
    limits: ServiceConfig = ServiceConfig(),
    runtime: RuntimeConfig = RuntimeConfig(),
) -> Iterator[RunningServer]:
    """Serve an engine until the block ends; then the server shuts down in order."""
    metrics = ServiceMetrics()
    llm = LLM(engine, SPECULATION, runtime, recorder=metrics.steps)
    listener = socket.create_server(("127.0.0.1", 0))
    made: list[GracefulServer] = []
    ready = threading.Event()

    async def serve() -> None:
        service = Service(llm, limits, metrics)
        server = make_server(make_app(service, config.model_name), service, config)
        made.append(server)
        asyncio.get_running_loop().call_later(0, ready.set)
        await server.serve([listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server")
    thread.start()
    if not ready.wait(WAIT_S):
        raise RuntimeError("the server did not start")
    try:
        yield RunningServer(listener.getsockname()[1], llm, made[0])
    finally:
        made[0].should_exit = True
        thread.join(WAIT_S)
        if thread.is_alive():
            raise RuntimeError("the server did not end")
