"""The `sparsespec` command: its list, its version, and who gets what follows."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from sparsespec.builder import build_engine
from sparsespec.runtime import main as sparsespec
from sparsespec.runtime import run, serve
from sparsespec.runtime.doctor import command


def leave(*arguments: str) -> int | str | None:
    """Exit code of a command line that argparse ends."""
    with pytest.raises(SystemExit) as left:
        sparsespec.main(arguments)
    return left.value.code


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("--help") == 0
    text = capsys.readouterr().out
    for name in ("build", "run", "serve", "doctor"):
        assert f"\n  {name} " in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("--version") == 0
    assert capsys.readouterr().out == f"sparsespec {version('sparsespec')}\n"


@pytest.mark.parametrize("arguments", [(), ("biuld",), ("--nonsense",), ("--vers",), ("--json", "doctor")])
def test_what_is_no_command(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(*arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("sparsespec: error: ")


@pytest.mark.parametrize(
    ("name", "module"), [("build", build_engine), ("run", run), ("serve", serve), ("doctor", command)]
)
def test_what_follows_goes_to_the_command(monkeypatch: pytest.MonkeyPatch, name: str, module: object) -> None:
    given: list[list[str]] = []

    def main(arguments: list[str]) -> int:
        given.append(arguments)
        return 7

    monkeypatch.setattr(module, "main", main)
    assert sparsespec.main([name, "--json", "file", "--", "--version", "--help"]) == 7
    assert given == [["--json", "file", "--", "--version", "--help"]]
    assert sparsespec.main([name]) == 7
    assert given[1] == []


@pytest.mark.parametrize(
    ("name", "flag"),
    [("build", "--checkpoint_dir"), ("run", "--engine_dir"), ("serve", "--port"), ("doctor", "--json")],
)
def test_a_command_lists_its_flags(capsys: pytest.CaptureFixture[str], name: str, flag: str) -> None:
    assert leave(name, "--help") == 0
    assert flag in capsys.readouterr().out
    assert leave(name, "--nonsense") == 2


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["doctor", "--help"], ["build", "--help"]])
def test_help_answers_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom sparsespec.runtime.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as left:\n    code = left.code\n"
        "print('loaded', code, [name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded 0 []"
