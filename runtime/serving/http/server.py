"""uvicorn, with a shutdown that first ends what has begun, and an end of its own when the engine fails."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from sparsespec.runtime.serving.http.guards import ApiKey, App, Bodies, RequestIds
from sparsespec.runtime.serving.http.protocol import LimitedHttpProtocol
from sparsespec.runtime.serving.http.server_config import ServerConfig
from sparsespec.runtime.serving.logs import log_event
from sparsespec.runtime.serving.service import Service

KEEP_ALIVE_S = 30  # that a connection stays open without a request
_CLOSING_S = 5  # for answers that the end of the service ends


@dataclass(frozen=True)
class Listening:
    """A line of the log: requests are taken from now on."""

    host: str
    port: int
    model: str


@dataclass(frozen=True)
class Draining:
    """A line of the log: a signal came; nothing more is let in."""

    running: int
    waiting: int
    timeout_s: float


@dataclass(frozen=True)
class Stopped:
    """A line of the log: the end."""

    drained: bool  # whether everything that had begun came to its end
    failed: bool  # whether the engine had failed


class GracefulServer(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, then lets requests end; a second signal ends them."""

    def __init__(self, config: uvicorn.Config, service: Service, model_name: str) -> None:
        super().__init__(config)
        self._service = service
        self._model_name = model_name

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        address = self.servers[0].sockets[0].getsockname()
        log_event(Listening(str(address[0]), int(address[1]), self._model_name))

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn; a server whose engine has failed is of no use."""
        return await super().on_tick(counter) or self._service.status.failed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Go on listening, to say that nothing more is let in, until what has begun is at its end."""
        status, timeout_s = self._service.status, self._service.config.drain_timeout_s
        log_event(Draining(status.running, status.waiting, timeout_s))
        drained = await self._drain(timeout_s)
        await self._service.close()
        await super().shutdown(sockets)
        log_event(Stopped(drained, self._service.status.failed))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn, which raises the signal again at the end: a server that was asked to end has not failed."""
        if threading.current_thread() is not threading.main_thread():  # where signals do not come
            yield
            return
        originals = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in originals.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks for an end, the next one for a quick one."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def _drain(self, timeout_s: float) -> bool:
        draining = asyncio.ensure_future(self._service.drain(timeout_s))
        while not draining.done() and not self.force_exit:
            await asyncio.wait([draining], timeout=0.1)
        if not draining.done():
            draining.cancel()
            return False
        return draining.result()


def guarded(app: FastAPI, config: ServerConfig) -> App:
    """The application behind its guards."""
    inner: App = Bodies(app, config)
    return RequestIds(inner if config.api_key is None else ApiKey(inner, config.api_key))


def make_server(app: FastAPI, service: Service, config: ServerConfig) -> GracefulServer:
    """A server that has not begun."""
    uvicorn_config = uvicorn.Config(
        guarded(app, config),
        host=config.host,
        port=config.port,
        http=partial(LimitedHttpProtocol, config),  # type: ignore[arg-type]  # called like the class it makes
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=_CLOSING_S,
    )
    for name in ("uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return GracefulServer(uvicorn_config, service, config.model_name)
