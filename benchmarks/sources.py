"""What ran: the version and the commit of the sources that a stored result is of."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def sources_version() -> str:
    """Of the installed package."""
    try:
        return version("sparsespec")
    except PackageNotFoundError:
        return "of a source tree"


def sources_commit() -> str:
    """Of the sources that ran, where git knows it; "-dirty" behind it if they were changed."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
