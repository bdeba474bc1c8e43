"""The host with other plugins than this project's, and the glue around a launch that throws: cpp/test_plugins.cpp."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_void_p
from pathlib import Path

import pytest

from built_plugins import built
from sparsespec.plugins.library import PluginsUnavailableError, plugin_host_path, plugin_library_path
from sparsespec.plugins.plugin_handle import DataType, EnginePhase, PluginHandle, PluginTensors, TensorDesc, Workspace
from sparsespec.plugins.plugin_host import PluginError, PluginLibrary

SIZE = 5
INTERNAL_ERROR = 4
VECTOR = TensorDesc((SIZE,), DataType.FLOAT32)
TENSORS = PluginTensors((VECTOR,), (VECTOR,))


def _library_path() -> Path:
    path = plugin_library_path().with_name("libsparsespec_test_plugins.so")
    if not path.is_file():
        raise PluginsUnavailableError(f"{path}: build with SPARSESPEC_TEST_PLUGINS=ON")
    return path


@pytest.fixture(scope="module")
def library() -> PluginLibrary:
    return PluginLibrary(built(_library_path), built(plugin_host_path))


def run(plugin: PluginHandle, size: int, workspace_size: int) -> list[float]:
    """Enqueue on memory of the host."""
    source, result = (c_float * SIZE)(1, 2, 3, 4, 5), (c_float * SIZE)()
    workspace = (c_float * (SIZE + 1))()
    workspace[SIZE] = -1
    memory = (c_void_p * 2)(ctypes.addressof(source), ctypes.addressof(result))
    plugin.prepare(TENSORS, size).enqueue(memory, Workspace(ctypes.addressof(workspace), workspace_size), 0)
    assert list(workspace) == [1, 2, 3, 4, 5, -1]
    return list(result)


def test_anybodys_plugin_runs(library: PluginLibrary) -> None:
    """Its build interface knows nothing of aliases, and in the runtime phase it has none."""
    assert library.creator_names == ("AddOne", "Throwing")
    assert library.creator_identity("AddOne") == ("AddOne", "7", "anybody")
    built_plugin = library.create_handle("AddOne", (), EnginePhase.BUILD)
    assert built_plugin.aliases() == (None,)
    assert built_plugin.output_types([DataType.FLOAT32]) == (DataType.FLOAT32,)
    assert built_plugin.output_shapes([VECTOR], symbolic=True) == ((SIZE,),)
    assert built_plugin.supports(0, TENSORS)
    assert built_plugin.supports(1, TENSORS)
    built_plugin.configure(TENSORS)
    size = built_plugin.workspace_size(TENSORS)
    assert size == SIZE * 4
    context = library.create_handle("AddOne", built_plugin.fields(), EnginePhase.RUNTIME).attach(with_context=True)
    context.on_shape_change(TENSORS)
    assert run(context, size, size) == [2, 3, 4, 5, 6]


def test_sizes_are_constants_unless_they_are_symbols(library: PluginLibrary) -> None:
    built_plugin = library.create_handle("AddOne", (), EnginePhase.BUILD)
    with pytest.raises(PluginError, match="getOutputShapes returned 77"):
        built_plugin.output_shapes([VECTOR], symbolic=False)


def test_too_small_a_workspace_is_not_handed_on(library: PluginLibrary) -> None:
    context = library.create_handle("AddOne", (), EnginePhase.RUNTIME)
    with pytest.raises(PluginError, match="expected a workspace of 20 bytes, got 19"):
        run(context, 20, 19)


def test_runtime_plugin_is_not_asked_what_a_builder_asks(library: PluginLibrary) -> None:
    context = library.create_handle("AddOne", (), EnginePhase.RUNTIME)
    with pytest.raises(PluginError, match="expected a plugin with the capability build, got a null pointer"):
        context.workspace_size(TENSORS)


def test_what_a_launch_throws_stays_inside(library: PluginLibrary) -> None:
    context = library.create_handle("Throwing", (), EnginePhase.RUNTIME)
    with pytest.raises(PluginError, match="Throwing: thrown in launch") as caught:
        run(context, 0, 0)
    assert caught.value.code == INTERNAL_ERROR
