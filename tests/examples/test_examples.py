"""The example scripts run as a user runs them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

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


def test_vllm_counts_tokens_once_all_requests_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a stand-in for vLLM: two requests, of which the second begins to decode one step later."""
    example = load("vllm_steady_state")
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(example.time, "perf_counter", lambda: next(clock))
    steps = [{"0": 1}, {"0": 2, "1": 1}, {"0": 3, "1": 2}, {"0": 4, "1": 3}]

    class Engine:
        def has_unfinished_requests(self) -> bool:
            return bool(steps)

        def step(self) -> list[SimpleNamespace]:
            lengths = steps.pop(0)
            return [
                SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=[7] * count)])
                for name, count in lengths.items()
            ]

    assert example._decode(Engine(), 2) == (7 - 3) / 2.0
