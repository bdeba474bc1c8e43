"""TensorRT's own plugin registry loads the library and makes plugins, on the CPU.

TensorRT-RTX is the one TensorRT whose libraries install from PyPI alone; it brings the registry, but no networks of
plugins. In a process of its own: what goes wrong here ends in a crash, not in an exception.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import TypedDict

import pytest

from plugin_cases import plugin_library
from sparsespec.plugins.library import plugin_library_path

pytestmark = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None, reason="needs the package tensorrt-rtx-cu13-bindings"
)

SCRIPT = """
import json, sys
import numpy as np
import tensorrt_rtx_bindings as trt

class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)

    def log(self, severity, message):
        if severity <= trt.ILogger.Severity.ERROR:
            print("logger:", message, file=sys.stderr)

logger = Logger()
runtime = trt.Runtime(logger)  # registers the logger
registry = trt.get_plugin_registry()
registry.load_library(sys.argv[1])
kinds = trt.PluginFieldType

def field(name, value):
    if isinstance(value, str):
        return trt.PluginField(name, np.frombuffer(value.encode(), np.int8), kinds.CHAR)
    if isinstance(value, float):
        return trt.PluginField(name, np.array([value], np.float32), kinds.FLOAT32)
    return trt.PluginField(name, np.array([value], np.int32), kinds.INT32)

def create(name, fields):
    fields = [field(*each) for each in fields.items()]
    creator = registry.get_creator(name, "1", "")
    return creator.create_plugin("of_this_test", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD) is not None

def field_names(name):
    return [each.name for each in registry.get_creator(name, "1", "").field_names]

asked = json.loads(sys.argv[2])
created = [create(*each) for each in asked]
names = {name: field_names(name) for name, _ in asked}
print(json.dumps({"created": created, "field_names": names}))
"""

HEADS = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64}
Fields = dict[str, int | float | str]


class Answer(TypedDict):
    """What the script prints."""

    created: list[bool]
    field_names: dict[str, list[str]]


def ask(*plugins: tuple[str, Fields]) -> tuple[Answer, str]:
    """Whether each could be made with its fields, and what was logged."""
    plugin_library()
    command = [sys.executable, "-c", SCRIPT, str(plugin_library_path()), json.dumps(plugins)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: Answer = json.loads(done.stdout.splitlines()[-1])
    return answer, done.stderr


def test_registry_makes_all_plugins() -> None:
    attention: Fields = {**HEADS, "page_size": 16, "rms_norm_eps": 1e-5, "qk_norm": 1, "score_planes": "diagonal"}
    rows: tuple[tuple[str, Fields], ...] = (
        ("AddRmsNorm", {"hidden_size": 64, "rms_norm_eps": 1e-5}),
        ("SiluMul", {"intermediate_size": 64}),
    )
    answer, _ = ask(("PillarPlan", dict(HEADS)), ("PillarAttention", attention), ("PillarSelect", {}), *rows)
    assert answer["created"] == [True] * 5
    for name, field_names in answer["field_names"].items():
        assert field_names == [each.name for each in plugin_library().field_names(name)]


def test_registry_gets_no_plugin_for_wrong_fields() -> None:
    """Told on standard error: TensorRT-RTX's major version is not that of the headers, so its logger is not used."""
    answer, logged = ask(
        ("PillarPlan", {**HEADS, "head_dim": 65}),
        ("PillarPlan", {**HEADS, "num_pages": 3}),
        ("PillarAttention", dict(HEADS)),
        ("PillarSelect", {"num_heads": 1}),
    )
    assert answer["created"] == [False] * 4
    for message in (
        "field head_dim: expected one of 64, 96, 128, got 65",
        'unknown field "num_pages"',
        "field page_size: required, but not given",
        'unknown field "num_heads": expected no fields',
    ):
        assert any(line.startswith("sparsespec: Pillar") and message in line for line in logged.splitlines())
