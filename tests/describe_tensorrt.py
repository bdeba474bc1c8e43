"""What one of TensorRT's bindings offers, and what becomes of our methods once its C++ calls them, as JSON.

A program, `describe_tensorrt.py MODULE [FOLDER]`, run in a process of its own: two bindings in one process crash.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.progress import Progress

from sparsespec.builder.trt.attention_layers import PluginLayers
from sparsespec.builder.trt.messages import LOGGER, ErrorLog, PythonLog
from sparsespec.builder.trt.progress import BuildProgress
from sparsespec.builder.trt.versions import implement
from sparsespec.plugins.pillar_attention.inputs import AttentionInputs, LayerInputs, PillarAttentionParams, StepInputs

MORE_ERRORS_THAN_ARE_KEPT = 1000


@dataclass(frozen=True)
class Member:
    """An attribute of a class or of the module."""

    kind: str  # "class", "method", "property", "enumerator", "buffer", or the type of a plain value
    reads: tuple[str, ...] = ()  # the overloads' signatures, or that of the property's getter
    writes: tuple[str, ...] = ()  # that of the setter; none where the property is read-only


@dataclass(frozen=True)
class Class:
    """A class of the module."""

    bases: tuple[str, ...]  # itself first
    members: Mapping[str, Member]


@dataclass(frozen=True)
class Bindings:
    """The module."""

    version: str
    members: Mapping[str, Member]
    classes: Mapping[str, Class]


@dataclass(frozen=True)
class Bars:
    """What a BuildProgress showed and answered."""

    bars: list[tuple[str, float, float | None]]  # title, steps done, steps; while the inner phase is under way
    goes_on: bool  # after a step
    goes_on_when_interrupted: bool
    bars_left: list[str]  # once the inner phase has ended


@dataclass(frozen=True)
class Calls:
    """What the interfaces' own methods gave, each of which calls, in C++, the virtual function that ours overrides."""

    levels: Mapping[str, int]  # of the log, by severity
    errors: Mapping[str, object]  # of IErrorRecorder, by method
    progress: Bars
    plugin_fields: Mapping[str, object]  # that a plugin's creator reads, once their makers have let go of them


def describe_bindings(trt: Any) -> Bindings:
    """Everything public."""
    classes = {name: _class(found) for name, found in vars(trt).items() if inspect.isclass(found)}
    members = {name: _member(found) for name, found in vars(trt).items() if not name.startswith("_")}
    return Bindings(trt.__version__, {**members, "__version__": _member(trt.__version__)}, classes)


def call_implementations(trt: Any) -> Calls:
    """Make the objects that the builder hands to TensorRT, and call them as TensorRT does."""
    return Calls(_log_levels(trt), _record_errors(trt), _report_progress(trt), _read_plugin_fields(trt))


def _class(found: Any) -> Class:
    names = [name for name in dir(found) if not name.startswith("_") or name in ("__init__", "__int__")]
    members = {name: _member(inspect.getattr_static(found, name)) for name in names}
    members |= {name: Member("enumerator") for name in getattr(found, "__members__", ())}
    if found.__name__ == "IHostMemory" and _is_buffer(found.__new__(found)):
        members["__buffer__"] = Member("buffer")
    return Class(tuple(base.__name__ for base in found.__mro__), members)


def _is_buffer(value: object) -> bool:
    """Of an object without content too. Before Python 3.12 a class does not show it."""
    return bool(ctypes.pythonapi.PyObject_CheckBuffer(ctypes.py_object(value)))


def _member(found: Any) -> Member:
    if isinstance(found, property):
        return Member("property", _signatures(found.fget), () if found.fset is None else _signatures(found.fset))
    if inspect.isclass(found):
        return Member("class")
    if callable(found):
        return Member("method", _signatures(found))
    return Member(type(found).__name__)


def _signatures(function: Any) -> tuple[str, ...]:
    """pybind11 writes each into a line of the docstring."""
    return tuple(line.strip() for line in (function.__doc__ or "").splitlines() if ") -> " in line)


class _Levels(logging.Handler):
    def __init__(self) -> None:
        super().__init__(level=1)
        self.of: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.of[record.getMessage()] = record.levelno


def _log_levels(trt: Any) -> Mapping[str, int]:
    levels = _Levels()
    LOGGER.addHandler(levels)
    LOGGER.setLevel(1)
    logger = implement(trt.ILogger, PythonLog())
    for name, severity in trt.ILogger.Severity.__members__.items():
        trt.ILogger.log(logger, severity, name)
    LOGGER.removeHandler(levels)
    return levels.of


def _record_errors(trt: Any) -> Mapping[str, object]:
    interface, recorder = trt.IErrorRecorder, implement(trt.IErrorRecorder, ErrorLog())
    code = trt.ErrorCodeTRT.INVALID_CONFIG
    answers = {
        "report_error": interface.report_error(recorder, code, "no such profile"),
        "num_errors": interface.num_errors(recorder),
        "get_error_code": interface.get_error_code(recorder, 0).name,
        "get_error_desc": interface.get_error_desc(recorder, 0),
        "has_overflowed": interface.has_overflowed(recorder),
    }
    for _ in range(MORE_ERRORS_THAN_ARE_KEPT):
        interface.report_error(recorder, code, "another")
    answers["has_overflowed in the end"] = interface.has_overflowed(recorder)
    interface.clear(recorder)
    return {**answers, "num_errors when cleared": interface.num_errors(recorder)}


class _Creator:
    """A registry and its creator: what it is given goes through the real PluginFieldCollection."""

    def __init__(self) -> None:
        self.fields: dict[str, object] = {}

    def get_creator(self, *_: str) -> _Creator:
        return self

    def create_plugin(self, name: str, field_collection: Any, phase: object) -> object:
        others = [np.full(1, 1000 + index, np.int32) for index in range(1000)]  # take what memory is free
        self.fields = {field.name: _value(field) for field in field_collection}
        return others


class _Network:
    def add_plugin_v3(self, *_: object) -> Any:
        return SimpleNamespace(name="", get_output=lambda _: None)


def _value(field: Any) -> object:
    if field.type.name != "CHAR":
        return field.data.item()
    # 10.13 shows the first character of a text over and over.
    return [field.data.tobytes()[:1].decode(errors="replace"), field.size]


def _read_plugin_fields(trt: Any) -> Mapping[str, object]:
    names = ("PluginField", "PluginFieldCollection", "PluginFieldType", "TensorRTPhase")
    creator = _Creator()
    module: Any = SimpleNamespace(get_plugin_registry=lambda: creator, **{name: getattr(trt, name) for name in names})
    params = PillarAttentionParams(num_heads=6, num_kv_heads=2, head_dim=64, page_size=16, rms_norm_eps=0.25)
    tensor: Any = SimpleNamespace(name="x")
    step = StepInputs(*[tensor] * len(fields(StepInputs)))
    inputs = AttentionInputs(tensor, None, LayerInputs(tensor, tensor, tensor, tensor), step, tensor)
    PluginLayers(module, aliased_io=False).insert_attention(_Network(), params, inputs)  # type: ignore[arg-type]
    return creator.fields


def _interrupt(*_: object, **__: object) -> None:
    """As the keyboard does, in the middle of a callback."""
    raise KeyboardInterrupt


def _report_progress(trt: Any) -> Bars:
    bars = Progress(disable=True)
    ours = BuildProgress(bars, "draft.engine")
    interface, monitor = trt.IProgressMonitor, implement(trt.IProgressMonitor, ours)
    interface.phase_start(monitor, "Building", None, 5)
    interface.phase_start(monitor, "Timing", "Building", 3)
    goes_on = interface.step_complete(monitor, "Timing", 0)
    shown = [(task.description.strip(), task.completed, task.total) for task in bars.tasks]
    bars.update = _interrupt  # type: ignore[method-assign,assignment]
    goes_on_when_interrupted = interface.step_complete(monitor, "Timing", 1)
    interface.phase_finish(monitor, "Timing")
    return Bars(shown, goes_on, goes_on_when_interrupted, [task.description for task in bars.tasks])


if __name__ == "__main__":
    name, *folders = sys.argv[1:]
    sys.path[:0] = folders
    module = importlib.import_module(name)
    print(json.dumps([asdict(describe_bindings(module)), asdict(call_implementations(module))]))
