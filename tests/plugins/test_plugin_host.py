"""The plugin host: opening libraries, hostile arguments, and what `Plugin.run` refuses without a device."""

from __future__ import annotations

import ctypes
import threading
from ctypes import c_int32, c_void_p
from pathlib import Path

import pytest
import torch
from torch import Tensor

from plugin_cases import PILLAR_ATTENTION, PILLAR_PLAN, PluginCase, every_plugin, plugin_library
from sparsespec.plugins import plugin_host
from sparsespec.plugins.library import plugin_host_path, plugin_library_path
from sparsespec.plugins.plugin_abi import MAX_DIMS, FieldStruct, HostLibrary, TensorsStruct, TensorStruct
from sparsespec.plugins.plugin_handle import (
    DataType,
    EnginePhase,
    PluginHandle,
    PluginTensors,
    TensorDesc,
    unpack_fields,
)
from sparsespec.plugins.plugin_host import Plugin, PluginError, PluginLibrary, plugin_field

TORCH_TYPES = {
    DataType.INT64: torch.int64,
    DataType.INT32: torch.int32,
    DataType.FLOAT32: torch.float32,
    DataType.FLOAT16: torch.float16,
    DataType.FP8: torch.float8_e4m3fn,
}


@pytest.fixture(autouse=True)
def _built() -> None:
    plugin_library()


@pytest.fixture
def host() -> HostLibrary:
    return HostLibrary(plugin_host_path())


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"absent\.so"):
        PluginLibrary(tmp_path / "absent.so", plugin_host_path())
    with pytest.raises(PluginError, match=r"absent\.so: expected the plugin host library"):
        HostLibrary(tmp_path / "absent.so")


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"no library\n" * 1000])
def test_file_that_is_no_library(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(content)
    with pytest.raises(PluginError, match=r"cannot open the plugin library: .*library\.so"):
        PluginLibrary(path, plugin_host_path())
    with pytest.raises(PluginError, match=r"library\.so: expected the plugin host library"):
        HostLibrary(path)


def test_libraries_of_another_kind() -> None:
    with pytest.raises(PluginError, match="exports getCreators; it exports no such function"):
        PluginLibrary(plugin_host_path(), plugin_host_path())
    with pytest.raises(PluginError, match=r"expected the plugin host library: .*sparsespec_host"):
        HostLibrary(plugin_library_path())


def test_unknown_plugin() -> None:
    with pytest.raises(PluginError, match=r"expected one of the plugins PillarPlan, .*, got Pillar \("):
        plugin_library().create("Pillar", {})


def test_create_goes_through_both_phases() -> None:
    fields = {"num_heads": 8, "num_kv_heads": 8, "head_dim": 128}
    assert isinstance(plugin_library().create("PillarPlan", fields), Plugin)
    with pytest.raises(PluginError, match="field head_dim"):
        plugin_library().create("PillarPlan", {**fields, "head_dim": 1})


def test_int_beyond_int32() -> None:
    with pytest.raises(PluginError, match=f"field page_size: expected an int32, got {2**31}"):
        plugin_field("page_size", 2**31)


def test_types_that_the_host_does_not_know() -> None:
    """Another library's plugin may serialise them."""
    structs = (FieldStruct * 1)(FieldStruct(b"blob", None, 8, 0))
    with pytest.raises(PluginError, match=r"expected a FieldType of FLOAT16 \(0\), .*, got 8"):
        unpack_fields(structs)


def test_rank_beyond_tensorrt() -> None:
    plugin = PILLAR_PLAN.create()
    with pytest.raises(PluginError, match="at most 8 dimensions"):
        plugin.output_shapes([TensorDesc((1,) * (MAX_DIMS + 1), DataType.INT32)])


# --- null pointers and nonsense, past the Python side ---


def test_null_handles(host: HostLibrary) -> None:
    tensors = TensorsStruct((TensorStruct * 1)(), 1, 0)
    for name in ("clone", "attach"):
        arguments = (None, 0) if name == "attach" else (None,)
        with pytest.raises(PluginError, match="expected a plugin, got a null pointer"):
            host.new_handle(name, *arguments)
    for name in ("configure", "on_shape_change"):
        with pytest.raises(PluginError, match="expected a plugin, got a null pointer"):
            host.check(name, None, tensors)
    with pytest.raises(PluginError, match="expected a plugin, got a null pointer"):
        host.text("identity", None)
    with pytest.raises(PluginError, match="expected a plugin, got a null pointer"):
        host.alias(c_void_p(), 0)
    with pytest.raises(PluginError, match="expected a launch and its memory"):
        host.check("enqueue", None, None, None, 0, None)
    with pytest.raises(PluginError, match="expected the index of a creator, got 0"):
        host.text("creator_name", None, 0)
    with pytest.raises(PluginError, match="expected a path, got a null pointer"):
        host.new_handle("open", None)
    host.release("destroy", c_void_p())
    host.release("discard", c_void_p())


def test_nowhere_to_put_the_answer(host: HostLibrary) -> None:
    library = host.new_handle("open", str(plugin_library_path()).encode())
    with pytest.raises(PluginError, match="expected a place for the answer"):
        host.check("create", library, 2, None, 0, 0, None)
    with pytest.raises(PluginError, match="expected fields, got a null pointer"):
        host.new_handle("create", library, 2, None, 1, 0)
    with pytest.raises(PluginError, match="expected the index of a creator, got 99"):
        host.new_handle("create", library, 99, None, 0, 0)


def test_field_without_a_name(host: HostLibrary) -> None:
    library = host.new_handle("open", str(plugin_library_path()).encode())
    with pytest.raises(PluginError, match="expected a name for every field"):
        host.new_handle("create", library, 0, (FieldStruct * 1)(), 1, 0)


@pytest.mark.parametrize("rank", [-1, 9, 2**31 - 1])
def test_absurd_ranks(host: HostLibrary, rank: int) -> None:
    library = host.new_handle("open", str(plugin_library_path()).encode())
    plugin = host.new_handle("create", library, 2, None, 0, 0)
    tensors = (TensorStruct * 8)()
    tensors[0].rank = rank
    with pytest.raises(PluginError, match="expected"):
        host.check("output_shapes", plugin, tensors, 7, 1, 0)
    with pytest.raises(PluginError, match="expected"):
        host.check("on_shape_change", plugin, TensorsStruct(tensors, 7, 1))
    host.release("destroy", plugin)


def test_absurd_counts(host: HostLibrary) -> None:
    library = host.new_handle("open", str(plugin_library_path()).encode())
    plugin = host.new_handle("create", library, 2, None, 0, 0)
    tensors = (TensorStruct * 1)()
    for inputs, outputs in ((-1, 1), (1, -1)):
        with pytest.raises(PluginError, match="negative number"):
            host.check("on_shape_change", plugin, TensorsStruct(tensors, inputs, outputs))
        with pytest.raises(PluginError, match="negative number"):
            host.check("output_shapes", plugin, tensors, inputs, outputs, 0)
        with pytest.raises(PluginError, match="negative number"):
            host.check("output_types", plugin, (c_int32 * 1)(), inputs, outputs)
    host.release("destroy", plugin)


def test_threads_have_their_own_errors() -> None:
    """Creates good and bad plugins at once; every error is that of its own thread."""
    wrong: list[str] = []

    def create(head_dim: int) -> str:
        try:
            plugin_library().create("PillarPlan", {"num_heads": 2, "num_kv_heads": 2, "head_dim": head_dim})
        except PluginError as error:
            return error.message
        return "got 64\n"

    def create_many(head_dim: int) -> None:
        messages = [create(head_dim) for _ in range(200)]
        wrong.extend(message for message in messages if f"got {head_dim}\n" not in message)

    threads = [threading.Thread(target=create_many, args=(head_dim,)) for head_dim in (1, 64, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_is_attached_dies_before_what_it_is_attached_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """As TensorRT keeps an engine's plugins longer than its contexts'."""
    released: list[object] = []
    release = HostLibrary.release

    def recorded(self: HostLibrary, name: str, handle: c_void_p) -> None:
        released.append(handle.value)
        release(self, name, handle)

    monkeypatch.setattr(HostLibrary, "release", recorded)
    runtime = PILLAR_PLAN.create()
    attached = runtime.attach(with_context=True)
    handles = [attached._handle.value, runtime._handle.value]
    del runtime
    assert released == []
    del attached
    assert released == handles


# --- Plugin.run ---


def as_plugin(case: PluginCase) -> Plugin:
    built = case.create()
    runtime = plugin_library().create_handle(case.name, built.fields(), EnginePhase.RUNTIME)
    return Plugin(case.name, built, runtime.attach(with_context=True))


def host_tensors(case: PluginCase) -> list[Tensor]:
    return [torch.zeros(each.shape, dtype=TORCH_TYPES[each.dtype]) for each in case.tensors().inputs]


@every_plugin
def test_describe(case: PluginCase) -> None:
    assert as_plugin(case).describe(case.tensors().inputs) == case.tensors()


def test_run_refuses_tensors_of_the_host() -> None:
    with pytest.raises(PluginError, match="PillarPlan: expected inputs on one CUDA device, got cpu"):
        as_plugin(PILLAR_PLAN).run(host_tensors(PILLAR_PLAN))
    with pytest.raises(PluginError, match="expected inputs on one CUDA device, got cpu, meta"):
        as_plugin(PILLAR_PLAN).run([*host_tensors(PILLAR_PLAN), torch.empty(3, device="meta")])
    with pytest.raises(PluginError, match="expected inputs on one CUDA device, got nothing"):
        as_plugin(PILLAR_PLAN).run([])


def cuda_tensors(case: PluginCase) -> list[Tensor]:
    return [each.cuda() for each in host_tensors(case)]


@pytest.mark.gpu
def test_run_refuses_what_does_not_fit() -> None:
    plugin, inputs = as_plugin(PILLAR_ATTENTION), idle_step(PILLAR_ATTENTION)
    plugin.run(inputs)
    for place, wrong, message in (
        (0, inputs[0].t().contiguous().t(), "input 0: expected a contiguous tensor, got shape"),
        (0, inputs[0].double(), "input 0: expected one of .*, got torch.float64"),
        (1, inputs[1].bfloat16(), r"input 1 \(kv_pool\): expected float16 like the tensors before it, got bfloat16"),
        (2, inputs[2].half(), r"input 2 \(draft_lse\): expected float32, got float16"),
        (
            3,
            inputs[3][:, :1].contiguous(),
            r"input 3 \(pillars\): expected shape \[max_batch_size = 3, 2, max_budget\]",
        ),
        (4, inputs[4].cpu(), "expected inputs on one CUDA device, got cpu, cuda:0"),
    ):
        with pytest.raises(PluginError, match=message):
            plugin.run([*inputs[:place], wrong, *inputs[place + 1 :]])
    with pytest.raises(PluginError, match="expected 17 inputs and 3 outputs, got 16 and 3"):
        plugin.run(inputs[:-1])


def idle_step(case: PluginCase) -> list[Tensor]:
    """A step with nothing to do: all lengths 0, all slots idle, no scored slot; with a plan where one is read."""
    inputs = cuda_tensors(case)
    for tensor, place in zip(inputs, case.inputs, strict=True):
        tensor.fill_({"phase": 3, "scored_slot": -1}.get(place.name, 0))
    names = [each.name for each in case.inputs]
    if "plan" in names:
        planner = plugin_library().create("PillarPlan", {"num_heads": 6, "num_kv_heads": 2, "head_dim": 96})
        lengths = [inputs[names.index(each.name)] for each in PILLAR_PLAN.inputs]
        (inputs[names.index("plan")],) = planner.run(lengths)
    return inputs


@pytest.mark.gpu
@every_plugin
def test_run_gives_outputs_and_aliases(case: PluginCase) -> None:
    inputs, plugin = idle_step(case), as_plugin(case)
    for _ in range(3):
        outputs = plugin.run(inputs)
        torch.cuda.synchronize()
        for output, alias, desc in zip(outputs, case.aliases, case.tensors().outputs, strict=True):
            assert tuple(output.shape) == desc.shape
            assert output.dtype == TORCH_TYPES[desc.dtype]
            assert alias is None or output is inputs[alias]


@pytest.mark.gpu
@pytest.mark.parametrize("max_launches", [1, 1024])
def test_run_tells_the_context_of_new_shapes(max_launches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the last run are known."""
    told: list[int] = []
    tell = PluginHandle.on_shape_change

    def recorded(self: PluginHandle, tensors: PluginTensors) -> None:
        told.append(tensors.inputs[1].shape[0])
        tell(self, tensors)

    monkeypatch.setattr(PluginHandle, "on_shape_change", recorded)
    monkeypatch.setattr(plugin_host, "MAX_LAUNCHES", max_launches)
    plugin, three = as_plugin(PILLAR_PLAN), idle_step(PILLAR_PLAN)
    two = [each[:-1].contiguous() for each in three]
    for inputs in (three, two, two, three, three):
        plugin.run(inputs)
    assert told == [3, 2, 3]


@pytest.mark.gpu
def test_run_in_a_cuda_graph() -> None:
    """A replay writes the plan of the lengths that the inputs have by then."""
    inputs, plugin = idle_step(PILLAR_PLAN), as_plugin(PILLAR_PLAN)
    (idle,) = plugin.run(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (captured,) = plugin.run(inputs)
    inputs[0].copy_(torch.tensor([0, 1, 1, 1]))
    inputs[1][0] = 1
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, plugin.run(inputs)[0])
    assert not torch.equal(captured, idle)


def test_memory_layout_of_the_c_structs() -> None:
    """As a 64-bit C compiler lays out plugins/host/plugin_host.h."""
    assert ctypes.sizeof(TensorStruct) == 16 + 8 * MAX_DIMS
    assert TensorStruct.sizes.offset == 16
    assert ctypes.sizeof(FieldStruct) == 24
    assert ctypes.sizeof(TensorsStruct) == 16
