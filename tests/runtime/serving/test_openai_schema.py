"""The server keeps to its own OpenAPI schema, whatever Schemathesis makes of that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from http_server_thread import RunningServer, running_server
from sparsespec.runtime.serving.app import create_app
from sparsespec.runtime.serving.server_config import ServerConfig
from tiny_llm import tiny_engine


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(tiny_engine(), create_app, ServerConfig(engine_dir=Path("tiny"))) as running:
        yield running
