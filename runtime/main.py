"""Builds engines, runs and serves them, and says what this machine has for both."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

# A command is imported once it is chosen: the others' imports would only delay it.


@dataclass(frozen=True)
class Command:
    """One word after `sparsespec`, and who takes what follows."""

    name: str
    summary: str
    run: Callable[[Sequence[str]], int]


def _build(arguments: Sequence[str]) -> int:
    from sparsespec.builder.build_engine import main

    return main(arguments)


def _run(arguments: Sequence[str]) -> int:
    from sparsespec.runtime.run import main

    return main(arguments)


def _serve(arguments: Sequence[str]) -> int:
    from sparsespec.runtime.serve import main

    return main(arguments)


def _doctor(arguments: Sequence[str]) -> int:
    from sparsespec.runtime.doctor.command import main

    return main(arguments)


COMMANDS = (
    Command("build", "build an engine directory from a model checkpoint", _build),
    Command("run", "generate text with an engine", _run),
    Command("serve", "serve an engine over HTTP, as OpenAI's API", _serve),
    Command("doctor", "say what is here and what each missing piece costs", _doctor),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the command's exit code; leaves with 2 where there is no such command."""
    listed = "\n".join(f"  {command.name:<8}{command.summary}" for command in COMMANDS)
    parser = argparse.ArgumentParser(
        prog="sparsespec",
        description=__doc__,
        epilog=f"commands:\n{listed}\n\n`sparsespec COMMAND --help` lists the flags of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sparsespec {version('sparsespec')}")
    parser.add_argument("command", choices=[command.name for command in COMMANDS], help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the command's own flags")
    flags = parser.parse_args(argv)
    (chosen,) = (command for command in COMMANDS if command.name == flags.command)
    return chosen.run(flags.arguments)


if __name__ == "__main__":
    raise SystemExit(main())
