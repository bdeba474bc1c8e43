"""Every plugin, asked on the CPU what TensorRT asks a plugin: types, shapes, formats, workspace."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest

import plugin_cases
from plugin_cases import CASES, PILLAR_ATTENTION, PILLAR_PLAN, PluginCase, TensorCase, altered, every_plugin
from sparsespec.plugins.plugin_handle import DataType, PluginTensors
from sparsespec.plugins.plugin_host import PluginError, plugin_field


@every_plugin
@pytest.mark.parametrize("dtype", [DataType.FLOAT16, DataType.BFLOAT16])
def test_output_types(case: PluginCase, dtype: DataType) -> None:
    tensors = case.tensors(dtype)
    types = case.create().output_types([each.dtype for each in tensors.inputs])
    assert types == tuple(each.dtype for each in tensors.outputs)


@every_plugin
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_output_shapes(case: PluginCase, symbolic: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugin_cases.SIZES, "rows", rows)
    tensors = case.tensors()
    shapes = case.create().output_shapes(tensors.inputs, symbolic=symbolic)
    assert shapes == tuple(each.shape for each in tensors.outputs)


@every_plugin
def test_workspace(case: PluginCase) -> None:
    assert (case.create().workspace_size(case.tensors()) > 0) == case.has_workspace


def test_workspace_holds_two_parts_of_every_worker() -> None:
    """Of 64 packed rows: an output of 96, a maximum and a sum each; and the 16 places of a halo. All in fp32."""
    part = 64 * (96 + 2) + 16
    assert PILLAR_ATTENTION.create().workspace_size(PILLAR_ATTENTION.tensors()) == 512 * 2 * part * 4


@every_plugin
def test_configure_takes_sizes_that_are_not_known(case: PluginCase) -> None:
    unknown = [replace(each, shape=(-1,) * len(each.shape)) for each in case.tensors().inputs]
    case.create().configure(replace(case.tensors(), inputs=tuple(unknown)))


def test_attention_need_not_say_what_it_updates_in_place() -> None:
    """The field aliased_io: enqueue wants one address for input and output all the same."""
    case = PILLAR_ATTENTION.with_fields((*PILLAR_ATTENTION.fields, plugin_field("aliased_io", 0)))
    assert case.create().aliases() == (None, None, None)
    assert PILLAR_ATTENTION.create().aliases() == (None, 1, 2)


@every_plugin
def test_number_of_tensors(case: PluginCase) -> None:
    plugin, tensors = case.create(), case.tensors()
    fewer = PluginTensors(tensors.inputs[:-1], tensors.outputs)
    more = PluginTensors((*tensors.inputs, tensors.inputs[-1]), tensors.outputs)
    other = PluginTensors(tensors.inputs, (*tensors.outputs, tensors.outputs[0]))
    for wrong in (fewer, more, other):
        for ask in (plugin.configure, plugin.on_shape_change):
            with pytest.raises(PluginError, match=f"expected {len(tensors.inputs)} inputs and {len(tensors.outputs)}"):
                ask(wrong)
        assert not plugin.supports(0, wrong)


def is_free(case: PluginCase, size: int | str) -> bool:
    """Whether only one dimension of one tensor has this size."""
    shapes = (each.shape for each in (*case.inputs, *case.outputs))
    related = {"B + 1": "B", "plan": "B", "drafts + 7": "drafts"}
    return isinstance(size, str) and [related.get(str(each), each) for each in chain(*shapes)].count(size) == 1


@every_plugin
def test_every_size_is_checked(case: PluginCase) -> None:
    plugin, tensors = case.create(), case.tensors()
    for place, tensor in enumerate((*case.inputs, *case.outputs)):
        desc = tensor.desc(DataType.FLOAT16)
        for axis, size in enumerate(desc.shape):
            wrong = replace(desc, shape=(*desc.shape[:axis], size + 2, *desc.shape[axis + 1 :]))
            if is_free(case, tensor.shape[axis]):
                plugin.on_shape_change(altered(tensors, place, wrong))
            else:
                with pytest.raises(PluginError, match="expected shape"):
                    plugin.on_shape_change(altered(tensors, place, wrong))


@every_plugin
def test_every_rank_is_checked(case: PluginCase) -> None:
    plugin, tensors = case.create(), case.tensors()
    for place, tensor in enumerate((*case.inputs, *case.outputs)):
        desc = tensor.desc(DataType.FLOAT16)
        for shape in (desc.shape[:-1], (*desc.shape, 1), ()):
            with pytest.raises(PluginError, match=rf"\({tensor.name}\): expected shape"):
                plugin.on_shape_change(altered(tensors, place, replace(desc, shape=shape)))


@pytest.mark.parametrize(
    ("label", "planes"), [("attention-mean", 2), ("attention-diagonal", 1), ("attention-rows", 18)]
)
def test_planes_fit_what_they_are_for(label: str, planes: int) -> None:
    case = next(each for each in CASES if each.label == label)
    scores = replace(case.inputs[18], shape=("scored", planes, 2, "positions"))
    wrong = replace(case, inputs=(*case.inputs[:18], scores), outputs=(*case.outputs[:3], scores))
    with pytest.raises(PluginError, match=r"\(scores\): expected shape .*planes of"):
        case.create().on_shape_change(wrong.tensors())


@pytest.mark.parametrize("case", [PILLAR_PLAN, PILLAR_ATTENTION], ids=["plan", "attention"])
@pytest.mark.parametrize("batch", [0, 1025])
def test_a_plan_has_room_for_so_many_slots(case: PluginCase, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told when the network is built, not when it runs."""
    for name, plus in (("B", 0), ("B + 1", 1), ("plan", 2 * (513 * 32 + 512))):
        monkeypatch.setitem(plugin_cases.SIZES, name, batch + plus)
    for ask in (case.create().configure, case.create().on_shape_change):
        with pytest.raises(PluginError, match=r"expected shape .*max_batch_size.* of 1 to 1024"):
            ask(case.tensors())


def test_a_slot_drafts_at_least_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugin_cases.SIZES, "drafts", 0)
    with pytest.raises(PluginError, match=r"\(draft_lse\): expected shape .*max_draft_len of at least 1"):
        PILLAR_ATTENTION.create().configure(PILLAR_ATTENTION.tensors())


def test_negative_size() -> None:
    case = PILLAR_PLAN
    wrong = replace(case.tensors().inputs[0], shape=(0,))  # B + 1 = 0
    with pytest.raises(PluginError, match=r"\(row_start\): expected shape \[max_batch_size \+ 1 of .*\], got \[0\]"):
        case.create().on_shape_change(altered(case.tensors(), 0, wrong))


# --- formats ---


def wrong_types(tensor: TensorCase, before: tuple[TensorCase, ...]) -> set[DataType]:
    """Types that do not fit once the tensors before are FLOAT16 where they may be."""
    if any(each.types == tensor.types for each in before):
        return set(DataType) - {tensor.desc(DataType.FLOAT16).dtype}
    return set(DataType) - tensor.types


@every_plugin
def test_formats(case: PluginCase) -> None:
    plugin, tensors = case.create(), case.tensors()
    every = (*case.inputs, *case.outputs)
    for place, tensor in enumerate(every):
        desc = tensor.desc(DataType.FLOAT16)
        assert plugin.supports(place, tensors)
        for other in range(1, 13):
            assert not plugin.supports(place, altered(tensors, place, replace(desc, format=other)))
        for dtype in wrong_types(tensor, every[:place]):
            wrong = altered(tensors, place, replace(desc, dtype=dtype))
            assert not plugin.supports(place, wrong)
            with pytest.raises(PluginError, match=rf"\({tensor.name}\): expected"):
                plugin.on_shape_change(wrong)


@every_plugin
def test_both_types_of_the_model(case: PluginCase) -> None:
    tensors = case.tensors(DataType.BFLOAT16)
    assert all(case.create().supports(place, tensors) for place in range(len(case.inputs) + len(case.outputs)))


@pytest.mark.parametrize("place", [-1, 10, 1000])
def test_place_out_of_range(place: int) -> None:
    assert not PILLAR_PLAN.create().supports(place, PILLAR_PLAN.tensors())
