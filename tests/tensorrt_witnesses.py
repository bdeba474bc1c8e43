"""Real bindings of TensorRT for tests on the CPU: two full ones, over stubs of their libraries, and TensorRT for RTX.

`make test` installs them, and sets SPARSESPEC_TENSORRT_BINDINGS=require: none may be missing then.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from describe_tensorrt import Bars, Bindings, Calls, Class, Member

VERSIONS = Path(__file__).with_name("tensorrt_bindings.txt").read_text().split()
RTX = "rtx"
WITNESSES = (*VERSIONS, RTX)
# They are compiled for one version of Python, so they are kept with it.
FULL_BINDINGS = Path(sys.prefix) / "tensorrt_bindings"
DESCRIBE = Path(__file__).with_name("describe_tensorrt.py")

# What the bindings want to find when they are loaded. They call none of it before we make a builder or a runtime.
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


@dataclass(frozen=True)
class Testimony:
    """Of one of the bindings."""

    __test__ = False  # no tests, for pytest

    bindings: Bindings
    calls: Calls


def ask_witness(witness: str, folder: Path) -> Testimony:
    """What the bindings of WITNESSES say; skips where they are not here. folder: for stubs of their libraries."""
    if witness == RTX:
        _need(find_spec("tensorrt_rtx_bindings") is not None, "the package tensorrt-rtx-cu13-bindings")
        return _ask(["tensorrt_rtx_bindings"], os.environ)
    found = FULL_BINDINGS / witness
    _need(found.is_dir(), f"{found} (`make test` installs it)")
    _need(shutil.which("cc") is not None, "a C compiler, cc")
    _compile_stubs(witness.partition(".")[0], folder)
    return _ask(["tensorrt_bindings", str(found)], {**os.environ, "LD_LIBRARY_PATH": str(folder)})


def _need(is_here: bool, what: str) -> None:
    if is_here:
        return
    if os.environ.get("SPARSESPEC_TENSORRT_BINDINGS") == "require":
        pytest.fail(f"SPARSESPEC_TENSORRT_BINDINGS=require, but there is not {what}")
    pytest.skip(f"needs {what}")


def _compile_stubs(major: str, folder: Path) -> None:
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    for name in LIBRARIES:
        library = folder / f"lib{name}.so.{major}"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)


def _ask(arguments: Sequence[str], environment: Mapping[str, str]) -> Testimony:
    command = [sys.executable, str(DESCRIBE), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    bindings, calls = json.loads(done.stdout.splitlines()[-1])
    return Testimony(
        Bindings(bindings["version"], _members(bindings["members"]), _classes(bindings["classes"])),
        Calls(calls["levels"], calls["errors"], Bars(**calls["progress"]), calls["plugin_fields"]),
    )


def _classes(found: Mapping[str, Any]) -> dict[str, Class]:
    return {name: Class(tuple(each["bases"]), _members(each["members"])) for name, each in found.items()}


def _members(found: Mapping[str, Any]) -> dict[str, Member]:
    return {name: Member(each["kind"], tuple(each["reads"]), tuple(each["writes"])) for name, each in found.items()}
