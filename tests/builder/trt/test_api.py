"""Every name and signature of TensorRT's that we use is that of TensorRT 10.13, 11.4 and TensorRT for RTX."""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from sparsespec.builder.trt import api
from sparsespec.builder.trt.config import Verbosity
from tensorrt_conformance import class_faults, declarations, module_faults, protocols_of
from tensorrt_witnesses import RTX, WITNESSES, Testimony, ask_witness

REPOSITORY = Path(__file__).parents[3]
# Its networks take no plugins; it is here for all the rest.
NOT_IN_RTX = ["INetworkDefinition.add_plugin_v3: not there"]
INTERFACES = {
    "ILogger": ["log"],
    "IErrorRecorder": ["clear", "get_error_code", "get_error_desc", "has_overflowed", "num_errors", "report_error"],
    "IProgressMonitor": ["phase_finish", "phase_start", "step_complete"],
}


@pytest.fixture(scope="module", params=WITNESSES)
def witness(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def testimony(witness: str, tmp_path_factory: pytest.TempPathFactory) -> Testimony:
    return ask_witness(witness, tmp_path_factory.mktemp("stubs"))


def test_bindings_have_all_that_is_declared(witness: str, testimony: Testimony) -> None:
    bindings = testimony.bindings
    classes = [each for each in protocols_of(api) if each not in (api.Named, api.TensorRT)]
    faults = [fault for each in classes for fault in class_faults(each, bindings)]
    faults += module_faults(api.TensorRT, bindings)
    assert faults == (NOT_IN_RTX if witness == RTX else [])
    names = sum(len(declarations(each)) for each in [*classes, api.TensorRT])
    print(f"{bindings.version}: {names} names of {len(classes)} classes and the module")


def test_bindings_are_the_pinned_ones(witness: str, testimony: Testimony) -> None:
    assert witness in (testimony.bindings.version, RTX)


def test_interfaces_have_no_method_that_we_do_not_know_of(testimony: Testimony) -> None:
    for name, expected in INTERFACES.items():
        members = testimony.bindings.classes[name].members
        assert [each for each in members if members[each].kind == "method" and not each.startswith("_")] == expected


def test_our_log_is_called(testimony: Testimony) -> None:
    assert testimony.calls.levels == {
        "INTERNAL_ERROR": logging.CRITICAL,
        "ERROR": logging.ERROR,
        "WARNING": logging.WARNING,
        "INFO": logging.DEBUG,
        "VERBOSE": logging.DEBUG - 1,
    }


def test_plugins_read_the_fields_that_they_were_given(testimony: Testimony) -> None:
    """The bindings' collection holds pointers into numpy's memory, which must live until then."""
    assert testimony.calls.plugin_fields == {
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 64,
        "page_size": 16,
        "kv_cache_dtype": ["a", 4],
        "rms_norm_eps": 0.25,
        "qk_norm": 0,
        "score_planes": ["m", len("mean")],
        "score_normalizer": ["d", len("draft")],
        "aliased_io": 0,
    }


def test_our_error_recorder_is_called(testimony: Testimony) -> None:
    """The bindings look for the number of errors under another name than their own method's: get_num_errors."""
    assert testimony.calls.errors == {
        "report_error": False,
        "num_errors": 1,
        "get_error_code": "INVALID_CONFIG",
        "get_error_desc": "no such profile",
        "has_overflowed": False,
        "has_overflowed in the end": True,
        "num_errors when cleared": 0,
    }


def test_our_progress_monitor_is_called(testimony: Testimony) -> None:
    progress = testimony.calls.progress
    assert progress.bars == [["draft.engine: Building", 0, 5], ["Timing", 1, 3]]
    assert (progress.goes_on, progress.goes_on_when_interrupted) == (True, False)
    assert progress.bars_left == ["draft.engine: Building"]


def test_verbosities_that_are_looked_up_by_name_are_declared() -> None:
    assert sorted(each.upper() for each in get_args(Verbosity)) == sorted(declared_enumerators(api.ProfilingVerbosity))


def declared_enumerators(protocol: type) -> list[str]:
    return [name for name in declarations(protocol) if name != "name"]


def imported_names(source: str) -> Iterator[str]:
    """What the source imports, also what it names to importlib."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (each.value for each in node.args if isinstance(each, ast.Constant))


def sources() -> Iterator[tuple[str, str]]:
    for room in ("plugins", "builder", "runtime"):
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            yield str(path.relative_to(REPOSITORY)), path.read_text()


def test_one_module_imports_tensorrt() -> None:
    imports = [(path, name) for path, source in sources() for name in imported_names(source)]
    assert [each for each in imports if each[1].startswith("tensorrt")] == [("builder/trt/versions.py", "tensorrt")]


def test_one_module_casts_to_the_protocols() -> None:
    """mypy holds everything else to them."""
    imports = {path: list(imported_names(source)) for path, source in sources()}
    aware = [path for path, names in imports.items() if any(name.startswith(api.__name__) for name in names)]
    assert "builder/trt/compile.py" in aware
    assert [path for path in aware if "typing.cast" in imports[path]] == ["builder/trt/versions.py"]


def test_imports_of_any_kind_are_found() -> None:
    source = "import numpy, a.b\nfrom c import d\ndef f():\n    importlib.import_module('e')\nfrom . import g"
    assert list(imported_names(source)) == ["numpy", "a.b", "c.d", "e"]
