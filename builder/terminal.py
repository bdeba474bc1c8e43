"""How a command-line tool ends: one line for an error, never a traceback for what a user or a terminal did."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

from sparsespec.builder.errors import BackendError, InputError


def run_tool(tool: Callable[[], int]) -> int:
    """Run `tool` and give its exit code; 2 after an error that the user can mend, 130 after an interrupt, 141 where
    the reader of stdout has gone.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a path or a model may say what the terminal's encoding cannot
    try:
        code = _with_errors_told(tool)
        if sys.stdout is not None:  # as in `tool >&-`
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_stdout()
        return 141
    except OSError as error:  # a full disk; files of our own raise InputError
        print(f"error: {error}", file=sys.stderr)
        _discard_stdout()
        return 2


def _with_errors_told(tool: Callable[[], int]) -> int:
    try:
        return tool()
    except (InputError, BackendError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _discard_stdout() -> None:
    """What could not be written must not be tried again at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
