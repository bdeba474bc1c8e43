"""The compiled plugins for tests that need them: skipped where they were not built, unless they had to be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsespec.plugins.library import PluginsUnavailableError


def built(find: Callable[[], Path]) -> Path:
    """What `find` (`plugin_library_path` or `plugin_host_path`) finds. CI builds with SPARSESPEC_PLUGINS=require."""
    try:
        return find()
    except PluginsUnavailableError as error:
        if os.environ.get("SPARSESPEC_PLUGINS") == "require":
            raise
        pytest.skip(f"needs the compiled plugins: {error}")
