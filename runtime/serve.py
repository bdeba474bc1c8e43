"""Serve an engine over HTTP as OpenAI's API: `python runtime/serve.py` or `sparsespec-serve`."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sparsespec.builder.config_io import add_flags, from_flags
from sparsespec.builder.errors import InputError
from sparsespec.builder.terminal import run_tool
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.serving.http.server_config import ServerConfig
from sparsespec.runtime.serving.logs import log_as_json
from sparsespec.runtime.serving.metrics import ServiceMetrics
from sparsespec.runtime.serving.process import tune_process
from sparsespec.runtime.serving.service_config import ServiceConfig

if TYPE_CHECKING:
    from sparsespec.runtime.llm import LLM

API_KEY_VARIABLE = "SPARSESPEC_API_KEY"

# What imports torch or FastAPI is imported where it is used: `--help` and a mistyped flag answer at once.


@dataclass(frozen=True)
class ServeFlags:
    """Everything the command line said."""

    server: ServerConfig
    service: ServiceConfig
    speculation: SpeculationConfig
    runtime: RuntimeConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns 0 after a shutdown that was asked for, 1 where the engine failed, 2 after an error that the user can mend.
    """
    parser = argparse.ArgumentParser(prog="serve", description=__doc__, allow_abbrev=False)
    sections = (ServerConfig, ServiceConfig, SpeculationConfig, RuntimeConfig)
    for section in sections:
        add_flags(parser, section)
    flags = parser.parse_args(argv)
    return run_tool(lambda: serve(_serve_flags(flags)))


def serve(flags: ServeFlags) -> int:
    """Load the engine and serve until a signal; returns main's exit code."""
    try:
        import uvloop

        from sparsespec.runtime.serving.http.app import create_app
        from sparsespec.runtime.serving.http.server import make_server
        from sparsespec.runtime.serving.service import Service
    except ModuleNotFoundError as error:
        raise InputError(f"the package {error.name} is missing: pip install 'sparsespec[serve]'") from error
    log_as_json(flags.server.log_level)
    with closing(_bind(flags.server)) as listener:  # before the engine is loaded: a port that is taken is known at once
        metrics = ServiceMetrics()
        llm = _load(flags, metrics)

        async def run() -> int:
            service = Service(llm, flags.service, metrics)
            server = make_server(create_app(service, flags.server.model_name), service, flags.server)
            await server.serve([listener])
            return 1 if service.status.failed else 0

        return uvloop.run(run())


def _serve_flags(flags: argparse.Namespace) -> ServeFlags:
    server = from_flags(ServerConfig, flags)
    if server.api_key is None and API_KEY_VARIABLE in os.environ:
        server = replace(server, api_key=os.environ[API_KEY_VARIABLE])
    return ServeFlags(
        server, from_flags(ServiceConfig, flags), from_flags(SpeculationConfig, flags), from_flags(RuntimeConfig, flags)
    )


def _bind(config: ServerConfig) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise InputError(f"cannot listen at {config.host} port {config.port}: {error.strerror}") from error
    return listener


def _load(flags: ServeFlags, metrics: ServiceMetrics) -> LLM:
    from sparsespec.runtime.llm import LLM

    llm = LLM(flags.server.engine_dir, flags.speculation, flags.runtime, metrics.steps)
    tune_process()
    return llm


if __name__ == "__main__":
    raise SystemExit(main())
