"""Every plugin refuses a launch that does not fit, on the CPU: a code and a message, never an abort."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from ctypes import c_void_p
from dataclasses import replace
from pathlib import Path

import pytest

import plugin_cases
from plugin_cases import CASES, PILLAR_ATTENTION, PluginCase, altered, every_plugin, plugin_library
from sparsespec.plugins.plugin_handle import DataType, PluginHandle, PluginTensors, TensorDesc, Workspace
from sparsespec.plugins.plugin_host import PluginError

INVALID_ARGUMENT, CUDA_ERROR = 1, 3


def addresses(case: PluginCase) -> list[int | None]:
    """Addresses that nobody may follow: inputs, then outputs."""
    inputs = [0x1000 * (index + 1) for index in range(len(case.inputs))]
    outputs = [
        0x100000 + 0x1000 * index if alias is None else inputs[alias] for index, alias in enumerate(case.aliases)
    ]
    return [*inputs, *outputs]


def enqueue(plugin: PluginHandle, tensors: PluginTensors, memory: list[int | None], workspace: int) -> PluginError:
    array: ctypes.Array[c_void_p] = (c_void_p * len(memory))(*memory)
    size = plugin.workspace_size(tensors)
    with pytest.raises(PluginError) as caught:
        plugin.prepare(tensors, size).enqueue(array, Workspace(workspace, size), 0)
    return caught.value


@every_plugin
def test_enqueue_refuses_null_pointers(case: PluginCase) -> None:
    plugin, tensors = case.create(), case.tensors()
    for place, tensor in enumerate((*case.inputs, *case.outputs)):
        memory = addresses(case)
        memory[place] = None
        error = enqueue(plugin, tensors, memory, 0x800000)
        assert error.code == INVALID_ARGUMENT
        assert f"({tensor.name}): expected device memory, got a null pointer" in error.message


ALIASED = [(case, index) for case in CASES for index, alias in enumerate(case.aliases) if alias is not None]


@pytest.mark.parametrize(("case", "index"), ALIASED, ids=[f"{case.label}-{index}" for case, index in ALIASED])
def test_enqueue_refuses_outputs_elsewhere(case: PluginCase, index: int) -> None:
    memory = addresses(case)
    memory[len(case.inputs) + index] = 0x900000
    error = enqueue(case.create(), case.tensors(), memory, 0x800000)
    assert error.code == INVALID_ARGUMENT
    expected = f"output {index} ({case.outputs[index].name}): expected the memory of input {case.aliases[index]}"
    assert expected in error.message


def test_enqueue_refuses_no_workspace() -> None:
    error = enqueue(PILLAR_ATTENTION.create(), PILLAR_ATTENTION.tensors(), addresses(PILLAR_ATTENTION), 0)
    assert error.code == INVALID_ARGUMENT
    assert "expected a workspace of" in error.message


def test_enqueue_refuses_too_small_a_workspace() -> None:
    """TensorRT tells a plugin no size; the host knows what it was given."""
    plugin, tensors = PILLAR_ATTENTION.create(), PILLAR_ATTENTION.tensors()
    memory = addresses(PILLAR_ATTENTION)
    size = plugin.workspace_size(tensors)
    launch = plugin.prepare(tensors, size)
    with pytest.raises(PluginError, match=f"expected a workspace of {size} bytes, got {size - 1}"):
        launch.enqueue((c_void_p * len(memory))(*memory), Workspace(0x800000, size - 1), 0)


@every_plugin
def test_enqueue_refuses_what_shapes_and_types_refuse(case: PluginCase) -> None:
    tensors = case.tensors()
    for place, tensor in enumerate((*case.inputs, *case.outputs)):
        for wrong in (replace(tensor.desc(DataType.FLOAT16), shape=(1,) * 7), TensorDesc((1,), DataType.INT8)):
            error = enqueue(case.create(), altered(tensors, place, wrong), addresses(case), 0x800000)
            assert error.code == INVALID_ARGUMENT
            assert f"({tensor.name}): expected" in error.message


LAUNCH_WITHOUT_DEVICE = """
from plugin_cases import CASES
from test_plugin_enqueue import addresses, enqueue
for case in CASES:
    error = enqueue(case.create(), case.tensors(), addresses(case), 0x800000)
    print(error.code, case.name in error.message, len(error.message.splitlines()[0]) > len(case.name) + 10)
"""


def run_python(code: str) -> str:
    """Output of a process of its own, without a CUDA device; a crash of it is a failure here."""
    folders = [str(Path(file).parent) for file in (plugin_cases.__file__, __file__)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_enqueue_without_a_device() -> None:
    plugin_library()
    assert run_python(LAUNCH_WITHOUT_DEVICE).splitlines() == [f"{CUDA_ERROR} True True"] * len(CASES)


OUT_OF_MEMORY = """
import ctypes, mmap, resource
from plugin_cases import PILLAR_ATTENTION, plugin_library
from sparsespec.plugins.plugin_abi import PluginError
from sparsespec.plugins.plugin_handle import pack_fields
from sparsespec.plugins.plugin_host import plugin_field
library, length = plugin_library(), 2**31 - 1
fields = pack_fields((*PILLAR_ATTENTION.fields, plugin_field("score_planes", "rows")))
text = mmap.mmap(-1, length)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * mmap.PAGESIZE
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
fields[-1].data, fields[-1].length = ctypes.addressof(ctypes.c_char.from_buffer(text)), length
try:
    library._host.new_handle("create", library._library, 1, fields, len(fields), 0)
except PluginError as error:
    print(error.message)
"""


def test_exceptions_stay_inside() -> None:
    """A text of 2 GiB does not fit in the memory that the process may have; its copy throws std::bad_alloc."""
    plugin_library()
    assert "PillarAttention: std::bad_alloc" in run_python(OUT_OF_MEMORY)


VECTORISED = [
    (case, place)
    for case in CASES
    for place, tensor in enumerate((*case.inputs, *case.outputs))
    if tensor.types in (plugin_cases.MODEL, plugin_cases.FP8) or tensor.name in ("plan", "rope_table")
]


@pytest.mark.parametrize(("case", "place"), VECTORISED, ids=[f"{case.label}-{place}" for case, place in VECTORISED])
@pytest.mark.parametrize("offset", [4, 8])
def test_enqueue_refuses_addresses_between_vectors(case: PluginCase, place: int, offset: int) -> None:
    """Kernels read 16 bytes at a time; a view of a tensor may begin anywhere."""
    tensor = (*case.inputs, *case.outputs)[place]
    memory = addresses(case)
    memory[place] = 0x1000 + offset
    error = enqueue(case.create(), case.tensors(), memory, 0x800000)
    assert error.code == INVALID_ARGUMENT
    assert f"({tensor.name}): expected an address that is a multiple of 16" in error.message
