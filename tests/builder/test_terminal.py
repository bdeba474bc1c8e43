from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sparsespec.builder.errors import InputError
from sparsespec.builder.terminal import run_tool

TOOL = """
from sparsespec.builder.terminal import run_tool
def tool() -> int:
    print({text!r})
    return 1
raise SystemExit(run_tool(tool))
"""


def run_with(stdout: int, text: str = "x" * 100_000, encoding: str = "utf-8") -> tuple[int, str]:
    """Exit code and stderr of a tool that prints `text` and returns 1."""
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", TOOL.format(text=text)]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    return done.returncode, done.stderr


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(writer)


@pytest.mark.parametrize("text", ["short", "x" * 100_000])
def test_reader_of_stdout_has_gone(pipe: tuple[int, int], text: str) -> None:
    reader, writer = pipe
    os.close(reader)
    assert run_with(writer, text) == (141, "")


@pytest.mark.parametrize("text", ["short", "x" * 100_000])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk(text: str) -> None:
    with open("/dev/full", "wb") as full:
        assert run_with(full.fileno(), text) == (2, "error: [Errno 28] No space left on device\n")


def test_encoding_without_the_letter(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    assert run_with(writer, "é", "ascii") == (1, "")
    assert os.read(reader, 9) == b"?\n"
    os.close(reader)


def test_closed_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert run_tool(lambda: print("nobody hears") or 0) == 0  # type: ignore[func-returns-value]


def test_users_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def tool() -> int:
        raise InputError("too long")

    assert run_tool(tool) == 2
    assert capsys.readouterr() == ("", "error: too long\n")
