"""Device headers of the plugins compiled for the CPU, as a library that ctypes calls."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsespec import plugins

SOURCES = Path(__file__).parent / "cpp"


def host_library(source: str, folder: Path, *language: str) -> ctypes.CDLL:
    """tests/cpp/`source` by nvcc, in `folder`; skips where there is none. `language`: flags, if not by its suffix."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        assert os.environ.get("SPARSESPEC_PLUGINS") != "require"
        pytest.skip("needs nvcc, whose headers the sources include")
    library = (folder / source).with_suffix(".so")
    include = next(str(path) for path in map(Path, plugins.__path__) if (path / "pillar_plan").is_dir())
    flags = [*language, "-std=c++17", "-O1", "-shared", "-Xcompiler", "-fPIC", "-I", include]
    subprocess.run([nvcc, *flags, str(SOURCES / source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def pointer(array: NDArray[np.int16] | NDArray[np.int32]) -> ctypes.c_void_p:
    """To the array's numbers; it must live as long as they are used."""
    return ctypes.c_void_p(array.ctypes.data)
