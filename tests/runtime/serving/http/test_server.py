"""Connections and bodies at their limits, the key, request ids, and the shutdown; over an application of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from http_server_thread import WAIT_S, RunningServer, running_server
from sparsespec.runtime.serving.http.guards import HttpRequest
from sparsespec.runtime.serving.http.ops import ops_router
from sparsespec.runtime.serving.http.server import Draining, Listening, Stopped
from sparsespec.runtime.serving.http.server_config import ServerConfig
from sparsespec.runtime.serving.logs import LOGGER
from sparsespec.runtime.serving.service import Service
from tiny_llm import tiny_engine

CONFIG = ServerConfig(
    engine_dir=Path("tiny"),
    api_key="secret",
    max_body_bytes=10_000,
    max_pending_body_bytes=15_000,
    max_head_bytes=4096,
    max_connections=8,
    receive_timeout_s=1.0,
    send_timeout_s=1.0,
)
KEY = {"Authorization": "Bearer secret"}


def small_app(service: Service, model_name: str) -> FastAPI:
    app = FastAPI()
    app.include_router(ops_router(service, model_name))

    @app.post("/v1/size")
    async def size(request: Request) -> dict[str, int | str]:
        return {"size": len(await request.body()), "request_id": request.state.request_id}

    @app.get("/v1/flood")
    async def flood() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)

        return StreamingResponse(parts())

    @app.get("/v1/slow")
    async def slow() -> str:
        await asyncio.sleep(0.5)
        return "done"

    return app


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(tiny_engine(), small_app, CONFIG) as running:
        yield running


def everything(connection: socket.socket) -> bytes:
    """What the server says until it closes the connection."""
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_health_and_status(server: RunningServer) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    status = httpx.get(f"{server.url}/v1/status", headers=KEY).json()
    assert status["model"] == "tiny"
    assert status["kv_cache_usage"] == 0


def test_metrics_are_prometheus_text(server: RunningServer) -> None:
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'sparsespec_requests_total{outcome="finished"} 0.0' in lines
    assert 'sparsespec_step_seconds_bucket{le="+Inf"} 0.0' in lines
    assert "# TYPE sparsespec_accepted_drafts histogram" in lines


@pytest.mark.parametrize("given", [None, "Bearer wrong", "secret", "Bearer secret2", "Bearer sécret"])
def test_nobody_gets_to_v1_without_the_key(server: RunningServer, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    for path in ("/v1/status", "/v1/size", "/v1", "/v1/none"):
        answer = httpx.get(f"{server.url}{path}", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("given", ["abc-1.2_3", "x" * 64])
def test_a_clients_request_id_is_kept(server: RunningServer, given: str) -> None:
    answer = httpx.post(f"{server.url}/v1/size", headers={**KEY, "X-Request-Id": given})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "<script>", "é".encode()])
def test_what_is_no_request_id_is_replaced(server: RunningServer, given: str) -> None:
    answer = httpx.post(f"{server.url}/v1/size", headers={**KEY, "X-Request-Id": given})
    assert len(answer.headers["x-request-id"]) == 32


def test_the_access_log(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    """A line comes once an answer is out; health is asked for too often to be told."""

    def logged() -> dict[str, HttpRequest]:
        return {record.msg.request_id: record.msg for record in caplog.records if isinstance(record.msg, HttpRequest)}

    caplog.set_level(logging.INFO, LOGGER)
    for path, request_id in (("/health", "health"), ("/v1/none", "log-me")):
        httpx.get(f"{server.url}{path}", headers={**KEY, "X-Request-Id": request_id})
    wait_until(lambda: "log-me" in logged())
    assert "health" not in logged()
    line = logged()["log-me"]
    assert (line.client, line.method, line.path, line.status) == ("127.0.0.1", "GET", "/v1/none", 404)


def test_bodies_have_a_size(server: RunningServer) -> None:
    url = f"{server.url}/v1/size"
    assert httpx.post(url, headers=KEY, content=b"x" * 10_000).json()["size"] == 10_000
    for body in (b"x" * 10_001, iter([b"x" * 5000] * 3)):  # declared, and in chunks
        answer = httpx.post(url, headers=KEY, content=body)
        assert answer.status_code == 413
        assert answer.json()["error"]["message"] == "the body has over 10000 bytes"


def test_a_declared_size_is_refused_before_a_byte_of_it_comes(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.sendall(post_head(content_length=10**18))
        assert everything(connection).startswith(b"HTTP/1.1 413 ")


def test_bodies_that_are_being_received_have_a_size_together(server: RunningServer) -> None:
    with server.connect() as first, server.connect() as second:
        for connection in (first, second):
            connection.sendall(post_head(content_length=9000) + b"x" * 8000)
        said = [everything(first), everything(second)]
    assert sorted(answer[:12] for answer in said) == [b"HTTP/1.1 408", b"HTTP/1.1 503"]
    assert httpx.post(f"{server.url}/v1/size", headers=KEY, content=b"x" * 9000).json()["size"] == 9000


def test_a_body_has_time(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.sendall(post_head(content_length=10))
        for _ in range(3):
            connection.sendall(b"x")
            time.sleep(0.1)
        said = everything(connection)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["message"] == "the body took over 1 s"


def post_head(content_length: int) -> bytes:
    lines = ["POST /v1/size HTTP/1.1", "Host: x", "Authorization: Bearer secret", f"Content-Length: {content_length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_slow_head_is_ended(server: RunningServer) -> None:
    """Slow loris: a header from time to time."""
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        for number in range(3):
            connection.sendall(b"X-%d: y\r\n" % number)
            time.sleep(0.1)
        assert everything(connection).startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_says_nothing_is_closed(server: RunningServer) -> None:
    with server.connect() as connection:
        assert everything(connection) == b""


def test_a_slow_head_after_an_answer_is_ended(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /hea")
        assert b"HTTP/1.1 408 " in everything(connection)


def test_a_head_that_comes_while_an_answer_is_made_does_not_end_it(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /v1/slow HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n\r\nGET /hea")
        said = everything(connection)
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b'"done"' in said


@pytest.mark.parametrize("endless", [b"X-Long: " + b"y" * 100_000, b"X: y\r\n" * 20_000, b"/" + b"z" * 100_000])
def test_a_head_has_a_size(server: RunningServer, endless: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n" if endless[:1] == b"X" else b"GET ")
        with suppress(BrokenPipeError, ConnectionResetError):  # the answer may be lost where the client goes on sending
            connection.sendall(endless)
        assert everything(connection)[:12] in (b"HTTP/1.1 431", b"")
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_what_is_no_http_is_refused(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert everything(connection).startswith(b"HTTP/1.1 400 ")


def test_connections_have_a_number(server: RunningServer) -> None:
    held = [server.connect() for _ in range(CONFIG.max_connections)]
    try:
        with server.connect() as connection:
            assert everything(connection).startswith(b"HTTP/1.1 503 ")
    finally:
        for connection in held:
            connection.close()
    wait_until(lambda: not server.server.server_state.connections)
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_client_that_does_not_read_is_cut_off(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /v1/flood HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n\r\n")
        assert connection.recv(10).startswith(b"HTTP/1.1 2")
        wait_until(lambda: not server.server.server_state.connections)
        wait_until(lambda: not server.server.server_state.tasks)


def wait_until(condition: Callable[[], bool]) -> None:
    """Fails where it does not become true."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_requests_that_have_begun_are_answered_before_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    answers: list[httpx.Response] = []
    with running_server(tiny_engine(), small_app, replace(CONFIG, api_key=None)) as running:
        client = threading.Thread(target=lambda: answers.append(httpx.get(f"{running.url}/v1/slow")))
        client.start()
        wait_until(lambda: bool(running.server.server_state.tasks))
    client.join()
    assert answers[0].json() == "done"
    events = [record.msg for record in caplog.records if isinstance(record.msg, Listening | Draining | Stopped)]
    assert [type(event) for event in events] == [Listening, Draining, Stopped]
    assert events[-1] == Stopped(drained=True, failed=False)
