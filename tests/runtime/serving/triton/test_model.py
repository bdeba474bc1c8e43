"""The model class behind a stand-in for Triton's Python backend, over a tiny engine."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import pytest

from fake_triton import FakeBackend, FakeRequest, model_args
from sparsespec.builder.build_config import BuildConfig
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.serving.service import Service
from sparsespec.runtime.serving.triton.model import TritonModel
from tiny_models import tiny_model_config, write_tiny_engine

BUILD = BuildConfig(
    dtype="float64",
    max_batch_size=4,
    max_seq_len=512,
    max_num_tokens=160,
    max_draft_len=4,
    max_budget=256,
    page_size=8,
)
PARAMETERS = {"engine_dir": "engine", "k": "4", "min_budget": "64", "drain_timeout_s": "0.2"}


@dataclass(frozen=True)
class Loaded:
    """A model that Triton has loaded."""

    model: TritonModel
    backend: FakeBackend
    repository: Path

    def ask(self, request: FakeRequest) -> FakeRequest:
        self.model.execute([request])
        return request


@contextmanager
def loaded_model(repository: Path) -> Iterator[Loaded]:
    """Loaded over a tiny engine, and unloaded at the end; what it changes of the process is as before."""
    write_tiny_engine(repository / "engine", tiny_model_config(), BUILD, seed=0)
    numbers, root = (signal.SIGTERM, signal.SIGINT), logging.getLogger()
    handlers, level, log_handlers = [signal.getsignal(number) for number in numbers], root.level, list(root.handlers)
    backend = FakeBackend()
    model = TritonModel(backend)
    model.initialize(model_args(repository, PARAMETERS))
    try:
        yield Loaded(model, backend, repository)
    finally:
        model.finalize()
        signal.set_wakeup_fd(-1)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        root.setLevel(level)
        root.handlers[:] = log_handlers


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[Loaded]:
    with loaded_model(tmp_path) as model:
        yield model


def asked(text: str, max_tokens: int, stream: bool = False) -> FakeRequest:
    return FakeRequest({"text_input": [text], "max_tokens": [max_tokens], "ignore_eos": [True], "stream": [stream]})


def offline(loaded: Loaded, prompts: Sequence[str], max_tokens: int) -> list[str]:
    llm = LLM(loaded.repository / "engine", SpeculationConfig(k=4, min_budget=64))
    outputs = llm.generate(list(prompts), SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True))
    return [output.outputs[0].text for output in outputs]


def test_answers_are_those_of_the_engine_streamed_or_whole(loaded: Loaded) -> None:
    requests = [asked("one", 20), asked("two", 20, stream=True), asked("three", 20)]
    loaded.model.execute(requests)
    found = [request.sender.responses() for request in requests]
    texts = ["".join(response.array("text_output")[0].decode() for response in each) for each in found]
    assert texts == offline(loaded, ("one", "two", "three"), 20)
    assert [len(each) > 1 for each in found] == [False, True, False]
    tokens = [token for response in found[1][:-1] for token in response.array("output_ids")[0]]
    assert len(tokens) == found[1][-1].array("num_output_tokens")[0] == 20


def test_only_outputs_that_were_asked_for_are_sent(loaded: Loaded) -> None:
    request = FakeRequest({"text_input": ["one"]}, outputs=("text_output", "finish_reason"))
    (response,) = loaded.ask(request).sender.responses()
    assert response.names == ["text_output", "finish_reason"]


def test_a_bad_request_takes_no_other_along(loaded: Loaded) -> None:
    bad, long, good = FakeRequest({"text_input": [""]}), asked("x" * 600, 4), asked("two", 10)
    loaded.model.execute([bad, long, good])
    for request, message in ((bad, "text_input must not be empty"), (long, "over max_seq_len 512")):
        (response,) = request.sender.responses()
        assert response.error is not None
        assert response.error.code == "INVALID_ARG"
        assert message in response.error.message
    assert good.sender.responses()[-1].error is None


def test_who_leaves_is_noticed_though_no_token_comes(loaded: Loaded) -> None:
    running = [loaded.ask(asked("one", 400)) for _ in range(4)]
    waiting = loaded.ask(asked("two", 4))
    waiting.sender.cancelled = True
    (response,) = waiting.sender.responses()
    assert response.error is not None
    assert response.error.code == "CANCELLED"
    for request in running:
        request.sender.cancelled = True
        assert request.sender.responses()[-1].error is not None


def test_a_time_limit_is_tritons_own(loaded: Loaded) -> None:
    request = asked("one", 450)
    request.timeout_us = 1000
    (response,) = loaded.ask(request).sender.responses()
    assert response.error is not None
    assert response.error.code == "UNAVAILABLE"
    assert "0.001" in response.error.message


def test_requests_are_logged_by_tritons_id(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with loaded_model(tmp_path) as loaded:
        request = asked("one", 2)
        request.name = "mine"
        loaded.ask(request).sender.responses()
        loaded.ask(asked("one", 2)).sender.responses()
    logged = capfd.readouterr().err
    assert '"request_id": "mine"' in logged
    assert '"request_id": "triton-1"' in logged


def test_a_stop_signal_ends_what_runs_and_lets_nothing_in(loaded: Loaded) -> None:
    running = loaded.ask(asked("one", 450, stream=True))
    running.sender.sent.get(timeout=60)
    signal.raise_signal(signal.SIGTERM)
    last = running.sender.responses()[-1]
    assert last.error is not None
    assert last.error.code == "UNAVAILABLE"
    assert "shutting down" in last.error.message
    (refused,) = loaded.ask(asked("two", 2)).sender.responses()
    assert refused.error is not None
    assert refused.error.code == "UNAVAILABLE"


def test_whatever_fails_there_is_a_last_response(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "stream", Mock(side_effect=OSError("no such thing")))
    (response,) = loaded.ask(asked("one", 2)).sender.responses()
    assert response.error is not None
    assert (response.error.code, response.error.message) == ("INTERNAL", "the server failed; its log says why")


def test_metrics_are_published(tmp_path: Path) -> None:
    with loaded_model(tmp_path) as loaded:
        loaded.ask(asked("one", 12)).sender.responses()
    made = loaded.backend.MetricFamily.made
    assert made["sparsespec_output_tokens_total"].metrics[0].value == 12
    assert made["sparsespec_kv_cache_usage"].metrics[0].labels == {"model": "sparsespec", "version": "1"}
