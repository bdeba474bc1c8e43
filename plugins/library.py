"""Where the compiled plugins are, what they were built for, and why there are none."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from sparsespec import plugins

PLUGIN_LIBRARY = "libsparsespec_plugins.so"
PLUGIN_HOST = "libsparsespec_plugin_host.so"
BUILD_INFO = "build_info.json"
# Names another folder that holds both libraries, such as that of a build by hand.
PLUGIN_DIR_VARIABLE = "SPARSESPEC_PLUGIN_DIR"


class PluginsUnavailableError(RuntimeError):
    """The compiled plugins are not here; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class BuildInfo:
    """What the build left about itself, in build_info.json."""

    missing: tuple[str, ...]  # what kept the plugins from being built, and how to get it; empty if they were built
    cuda_architectures: tuple[str, ...]  # in CMake's terms, such as "80" or "90a-real"
    cuda_version: str
    tensorrt_version: str  # of the headers
    tensorrt_headers: str  # where those came from: "TENSORRT_ROOT", "system" or "PyPI"


def plugin_library_path() -> Path:
    """The TensorRT plugin library. PluginsUnavailableError if it is not here."""
    return _find(PLUGIN_LIBRARY)


def plugin_host_path() -> Path:
    """The library that runs plugins without TensorRT. PluginsUnavailableError if it is not here."""
    return _find(PLUGIN_HOST)


def build_info() -> BuildInfo:
    """What was built, or what kept it from being built. PluginsUnavailableError if no build was ever tried."""
    return _read(_find(BUILD_INFO))


def _find(name: str) -> Path:
    for folder in _folders():
        if (folder / name).is_file():
            return folder / name
    raise PluginsUnavailableError(_explain(name))


def _folders() -> list[Path]:
    """An editable install has the sources in one folder of the package and what was built in another."""
    chosen = os.environ.get(PLUGIN_DIR_VARIABLE)
    return [Path(chosen)] if chosen else [Path(folder) for folder in plugins.__path__]


def _explain(name: str) -> str:
    folders = _folders()
    listed = " or ".join(str(folder) for folder in folders)
    found = [folder / BUILD_INFO for folder in folders if (folder / BUILD_INFO).is_file()]
    missing = _read(found[0]).missing if found else ()
    if missing:
        reasons = "\n".join(f"- {reason}" for reason in missing)
        return f"{name} was not built. There was missing\n{reasons}\nThen install sparsespec again."
    if os.environ.get(PLUGIN_DIR_VARIABLE):
        return f"expected {name} in {listed}, which {PLUGIN_DIR_VARIABLE} names, but it is not there"
    return f"expected {name} in {listed}, but it is not there: install sparsespec with pip, which builds it"


def _read(path: Path) -> BuildInfo:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        return BuildInfo(
            missing=tuple(info["missing"]),
            cuda_architectures=tuple(info["cuda_architectures"]),
            cuda_version=info["cuda_version"],
            tensorrt_version=info["tensorrt_version"],
            tensorrt_headers=info["tensorrt_headers"],
        )
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path}: expected what a build of sparsespec leaves, found something else ({error!r})"
        raise PluginsUnavailableError(f"{message}; install sparsespec again") from error
