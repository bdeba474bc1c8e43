"""The example scripts run as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
