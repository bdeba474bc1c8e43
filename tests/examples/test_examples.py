"""The example scripts run as a user runs them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from throughput_study.windows import Window
from tiny_llm import BUILD
from tiny_models import tiny_model_config, write_tiny_engine

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_engine(tmp_path_factory.mktemp("engines") / "tiny", tiny_model_config(), BUILD, seed=0)


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def load(name: str) -> ModuleType:
    """An example as a module, to test its parts."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_generate(engine_dir: Path) -> None:
    output = run("generate.py", str(engine_dir), "One?", "Two?")
    assert "One?" in output
    assert "Two?" in output
    assert output.count("drafts accepted per verification: [") == 2


def test_stream(engine_dir: Path) -> None:
    assert len(run("stream.py", str(engine_dir), "One?")) > 1
    assert run("stream.py", str(engine_dir), "One?") == run("stream.py", str(engine_dir), "One?")


def test_demo_text(tmp_path: Path) -> None:
    """At least 3,000 tokens at four characters a token, from this Python's own documentation."""
    run("demo_text.py", str(tmp_path / "demo.txt"))
    assert len((tmp_path / "demo.txt").read_text(encoding="utf-8")) > 12_000


class StandInForVllm:
    """Decodes what is prefilled, and prefills with the room that is left; a step takes a second. DELTA outputs."""

    def __init__(self, shape: Any, max_tokens: int, lost_step: int | None = None) -> None:
        self.seconds = 0.0
        self._shape = shape
        self._max_tokens = max_tokens
        self._lost_step = lost_step  # one whose first request is preempted
        self._prefilled = 0  # tokens, over all requests in their order
        self._tokens = [0] * shape.batch

    def step(self) -> list[SimpleNamespace]:
        self.seconds += 1
        decoding = [number for number in range(self._shape.batch) if self._prefilled >= self._end(number)]
        self._prefilled += self._shape.max_num_batched_tokens - len(decoding)
        if self.seconds == self._lost_step:
            decoding = decoding[1:]
        return [self._output(number) for number in decoding]

    def _end(self, number: int) -> int:
        return int((number + 1) * self._shape.prompt_len)

    def _output(self, number: int) -> SimpleNamespace:
        self._tokens[number] += 1
        finished = self._tokens[number] == self._max_tokens
        return SimpleNamespace(request_id=str(number), finished=finished, outputs=[SimpleNamespace(token_ids=[7])])


@pytest.fixture
def vllm() -> ModuleType:
    return load("vllm_steady_state")


def test_vllm_is_timed_while_every_request_decodes(vllm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = vllm.Shape(batch=20, context=3000, num_steps=30, max_num_batched_tokens=1000)
    engine = StandInForVllm(shape, shape.max_tokens)
    monkeypatch.setattr(vllm.time, "perf_counter", lambda: engine.seconds)
    window = vllm.measure(engine, shape)
    assert (window.num_requests, window.num_steps, window.num_tokens, window.seconds) == (20, 30, 600, 30.0)
    assert window.context == pytest.approx(shape.context, rel=0.01)
    assert window.line().endswith(": 1000.000 ms a step, 20 tokens/s")
    assert {field.name for field in fields(vllm.Window)} <= {field.name for field in fields(Window)}


def test_vllm_must_not_preempt_in_the_window(vllm: ModuleType) -> None:
    shape = vllm.Shape(batch=20, context=300, num_steps=30, max_num_batched_tokens=120)
    lost_step = shape.prefill_steps + 32
    with pytest.raises(RuntimeError, match="expected a token for each of 20 requests in a step, found 19"):
        vllm.measure(StandInForVllm(shape, shape.max_tokens, lost_step), shape)


def test_vllm_must_not_end_a_request_before_the_window_does(vllm: ModuleType) -> None:
    shape = vllm.Shape(batch=20, context=300, num_steps=30, max_num_batched_tokens=120)
    with pytest.raises(RuntimeError, match="request 0 ended before"):
        vllm.measure(StandInForVllm(shape, max_tokens=80), shape)


@pytest.mark.parametrize(("context", "room", "message"), [(50, 120, "expected room for"), (300, 20, "more than batch")])
def test_vllm_needs_room_for_prompts(vllm: ModuleType, context: int, room: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = vllm.Shape(20, context, 30, room).prompt_len
