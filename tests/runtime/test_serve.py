"""`sparsespec-serve` as a process: its flags, its end under load, and what comes after a restart."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from serving_study.clients import OpenAIStreams, Question
from serving_study.load import Load, StreamRecord, follow, run_load
from serving_study.server_process import ServerExit, ServerProcess, running_server_process
from serving_study.servers import BatchCount, read_batch_count
from sparsespec.runtime import serve
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import OutputDelta
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.serving.process import tune_process
from tiny_llm import BUILD
from tiny_models import tiny_model_config, write_tiny_engine

FLAGS = ("--k", "4", "--min_budget", "64")
NUM_STREAMS = 64
MAX_TOKENS = 48
ALL = 1 + NUM_STREAMS


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = replace(BUILD, max_batch_size=NUM_STREAMS, max_num_tokens=2048)
    return write_tiny_engine(tmp_path_factory.mktemp("engine") / "tiny", tiny_model_config(vocab_size=260), build, 0)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """Each another; the last one joins late."""
    return [Question(f"question {number}: {'why ' * (number % 7)}?", MAX_TOKENS) for number in range(ALL)]


@pytest.fixture(scope="module")
def expected(engine_dir: Path, questions: Sequence[Question]) -> list[str]:
    """Offline."""
    llm = LLM(engine_dir, SpeculationConfig(k=4, min_budget=64), RuntimeConfig())
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
    return [output.outputs[0].text for output in llm.generate([each.prompt for each in questions], params)]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of torch, in the server: more of them only wait for each other in so small a model."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def own_process() -> Iterator[None]:
    """For tests that serve in the tests' own process: what a server sets for good is taken back."""
    threshold, switch_interval, root = gc.get_threshold(), sys.getswitchinterval(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)
    sys.setswitchinterval(switch_interval)
    root.handlers[:] = handlers
    root.setLevel(level)


def batch_count(server: ServerProcess) -> BatchCount:
    return read_batch_count(httpx.get(f"{server.url}/metrics").text)


def test_streams_share_one_batch_and_a_latecomer_joins_it(
    engine_dir: Path, questions: list[Question], expected: list[str]
) -> None:
    async def load(server: ServerProcess) -> Load:
        client = OpenAIStreams(server.url, "tiny")
        found = await run_load(client, questions[:-1], questions[-1])
        await client.close()
        return found

    with running_server_process(engine_dir, FLAGS) as server:
        before = batch_count(server)
        found = asyncio.run(load(server))
        mean_batch = batch_count(server).mean_since(before)
        status = httpx.get(f"{server.url}/v1/status").json()
    assert [record.failure for record in (*found.records, found.late)] == [None] * ALL
    assert [record.text for record in (*found.records, found.late)] == expected
    assert len(set(expected)) == ALL
    assert mean_batch > 16
    assert found.num_running_late > 0
    assert (status["running"], status["waiting"], status["kv_cache_usage"]) == (0, 0, 0)


async def start_all(server: ServerProcess, questions: Sequence[Question]) -> tuple[list[StreamRecord], asyncio.Future]:
    """Every stream has had its first part."""
    client = OpenAIStreams(server.url, "tiny")
    records = [StreamRecord(question) for question in questions]
    following = asyncio.gather(*(follow(client, record) for record in records))
    for record in records:
        await record.begun.wait()
    return records, following


def end_under_load(
    engine_dir: Path, questions: Sequence[Question], flags: Sequence[str], signals: Sequence[signal.Signals]
) -> tuple[list[StreamRecord], ServerExit]:
    async def load(server: ServerProcess) -> list[StreamRecord]:
        records, following = await start_all(server, questions)
        for number in signals:
            server.send(number)
            server.wait_for("draining")
        await following
        return records

    with running_server_process(engine_dir, (*FLAGS, *flags)) as server:
        records = asyncio.run(load(server))
        return records, server.wait()


def test_sigterm_lets_answers_end_and_a_new_server_takes_the_port(
    engine_dir: Path, questions: list[Question], expected: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for _ in range(2):
        records, ended = end_under_load(engine_dir, questions[:-1], ("--port", str(port)), [signal.SIGTERM])
        assert (ended.code, ended.drained) == (0, True)
        assert [record.text for record in records] == expected[:-1]
        assert all(record.failure is None for record in records)
        assert sum(line["event"] == "request_ended" for line in ended.log) == NUM_STREAMS


def test_what_takes_too_long_to_end_is_told_so(
    engine_dir: Path, questions: list[Question], expected: list[str]
) -> None:
    long = [replace(question, max_tokens=200) for question in questions[:-1]]
    records, ended = end_under_load(engine_dir, long, ("--drain_timeout_s", "0.05"), [signal.SIGTERM])
    assert (ended.code, ended.drained) == (0, False)
    told = [record for record in records if record.failure is not None]
    assert told
    for record in told:
        assert "shutting down" in str(record.failure)
    for record, text in zip(records, expected, strict=False):
        assert record.text[: len(text)] == text[: len(record.text)]


def test_other_signals_and_a_second_one(engine_dir: Path, questions: list[Question]) -> None:
    with running_server_process(engine_dir, FLAGS) as server:
        server.send(signal.SIGINT)
        assert server.wait().code == 0

    async def load(server: ServerProcess) -> None:
        _, following = await start_all(server, [replace(question, max_tokens=200) for question in questions[:-1]])
        server.send(signal.SIGTERM)
        server.wait_for("draining")
        server.send(signal.SIGTERM)
        await following

    with running_server_process(engine_dir, FLAGS) as server:
        asyncio.run(load(server))
        ended = server.wait()
    assert (ended.code, ended.drained) == (0, False)


def test_while_it_drains_it_says_that_it_takes_nothing_more(engine_dir: Path, questions: list[Question]) -> None:
    async def load(server: ServerProcess) -> httpx.Response:
        _, following = await start_all(server, [replace(question, max_tokens=200) for question in questions[:-1]])
        server.send(signal.SIGTERM)
        server.wait_for("draining")
        body = {"model": "tiny", "prompt": "more", "max_tokens": 1}
        refused = httpx.post(f"{server.url}/v1/completions", json=body)
        assert httpx.get(f"{server.url}/health").json() == {"status": "draining"}
        await following
        return refused

    with running_server_process(engine_dir, FLAGS) as server:
        refused = asyncio.run(load(server))
        assert server.wait().drained
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--port", "65536"), "port must be at most 65535, found 65536"),
        (("--max_requests", "0"), "max_requests must be at least 1, found 0"),
        (("--api_key", "schlüssel"), "api_key must be printable ASCII"),
        (("--host", "203.0.113.1"), "cannot listen at 203.0.113.1 port 8000"),
        (("--receive_timeout_s", "nan"), "receive_timeout_s must be in"),
        (("--k", "17", "--port", "0"), "k must be at most the engine's max_draft_len 16, found 17"),
    ],
)
@pytest.mark.usefixtures("own_process")
def test_what_cannot_be_is_said_in_a_line(
    engine_dir: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main(["--engine_dir", str(engine_dir), *flags]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


@pytest.mark.usefixtures("own_process")
def test_a_port_that_is_taken_is_known_before_the_engine_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert serve.main(["--engine_dir", str(tmp_path / "none"), "--port", port]) == 2
    assert f"cannot listen at 127.0.0.1 port {port}: Address already in use" in capsys.readouterr().err


def test_the_key_may_come_from_the_environment(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(serve.API_KEY_VARIABLE, "from-the-environment")
    with running_server_process(engine_dir, FLAGS) as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        key = {"Authorization": "Bearer from-the-environment"}
        assert httpx.get(f"{server.url}/v1/models", headers=key).json()["data"][0]["id"] == "tiny"


@pytest.mark.usefixtures("own_process")
def test_the_event_loop_lets_the_step_loop_go_on() -> None:
    tune_process()
    assert sys.getswitchinterval() == pytest.approx(0.0005)
    assert gc.get_freeze_count() > 1000


@pytest.mark.usefixtures("own_process")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_whose_engine_fails_ends_with_an_error(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever runs it starts another."""

    def fail(_llm: LLM) -> list[OutputDelta]:
        raise MemoryError("no memory for a step")

    monkeypatch.setattr(LLM, "advance", fail)
    answers: list[httpx.Response] = []

    def ask() -> None:
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 4}
        transport = httpx.HTTPTransport(retries=200)
        with httpx.Client(transport=transport, timeout=None) as client:
            answers.append(client.post(f"http://127.0.0.1:{port}/v1/completions", json=body))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = threading.Thread(target=ask)
    client.start()
    assert serve.main(["--engine_dir", str(engine_dir), "--port", str(port), *FLAGS]) == 1
    client.join()
    assert answers[0].status_code == 500
    assert answers[0].json()["error"]["code"] == "engine_failed"
