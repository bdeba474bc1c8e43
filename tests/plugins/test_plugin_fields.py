"""Fields of every plugin: what creators say, take and refuse, and what copies keep."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from plugin_cases import (
    ADD_RMS_NORM,
    CASES,
    PILLAR_ATTENTION,
    SILU_MUL,
    PluginCase,
    every_plugin,
    plugin_library,
)
from sparsespec.plugins.limits import MAX_HIDDEN_SIZE, MAX_INTERMEDIATE_SIZE
from sparsespec.plugins.plugin_handle import EnginePhase, FieldType, PluginField, PluginHandle
from sparsespec.plugins.plugin_host import PluginError, plugin_field

WITH_FIELDS = [case for case in CASES if case.fields]
every_plugin_with_fields = pytest.mark.parametrize("case", WITH_FIELDS, ids=[case.label for case in WITH_FIELDS])


def refusal(case: PluginCase) -> str:
    with pytest.raises(PluginError) as caught:
        case.create()
    assert caught.value.code < 0
    return caught.value.message


def test_library_offers_the_plugins() -> None:
    library = plugin_library()
    assert library.creator_names == (
        "PillarPlan",
        "PillarAttention",
        "PillarSelect",
        "AddRmsNorm",
        "SiluMul",
        "StepRows",
        "SampleRows",
        "AcceptDrafts",
    )
    for name in library.creator_names:
        assert library.creator_identity(name) == (name, "1", "")


def test_field_names() -> None:
    int32, float32, text = FieldType.INT32, FieldType.FLOAT32, FieldType.CHAR
    heads = {"num_heads": int32, "num_kv_heads": int32, "head_dim": int32}
    norm = {"rms_norm_eps": float32, "qk_norm": int32, "aliased_io": int32}
    expected = {
        "PillarPlan": heads,
        "PillarAttention": {
            **heads,
            "page_size": int32,
            "kv_cache_dtype": text,
            **norm,
            "score_planes": text,
            "score_normalizer": text,
        },
        "PillarSelect": {},
        "AddRmsNorm": {"hidden_size": int32, "rms_norm_eps": float32},
        "SiluMul": {"intermediate_size": int32},
        "StepRows": {},
        "SampleRows": {"coupling": text},
        "AcceptDrafts": {"coupling": text},
    }
    for name, fields in expected.items():
        assert {each.name: each.type for each in plugin_library().field_names(name)} == fields


@every_plugin
def test_unknown_field(case: PluginCase) -> None:
    message = refusal(case.with_fields((*case.fields, plugin_field("num_pages", 3))))
    assert 'unknown field "num_pages"' in message
    assert all(field.name in message for field in case.fields)


@every_plugin_with_fields
def test_field_given_twice(case: PluginCase) -> None:
    assert f"field {case.fields[0].name}: expected once" in refusal(case.with_fields((*case.fields, case.fields[0])))


@pytest.mark.parametrize("name", ["num_heads", "num_kv_heads", "head_dim", "page_size"])
def test_missing_field(name: str) -> None:
    case = PILLAR_ATTENTION
    fields = tuple(field for field in case.fields if field.name != name)
    assert f"field {name}: required" in refusal(case.with_fields(fields))


def with_field(case: PluginCase, field: PluginField) -> PluginCase:
    return case.with_fields((*(each for each in case.fields if each.name != field.name), field))


ALL_ATTENTION_FIELDS = (
    *PILLAR_ATTENTION.fields,
    plugin_field("kv_cache_dtype", "fp8"),
    plugin_field("rms_norm_eps", 1e-5),
    plugin_field("qk_norm", 1),
    plugin_field("aliased_io", 0),
    plugin_field("score_planes", "rows"),
    plugin_field("score_normalizer", "exact"),
)


def damages() -> Iterator[tuple[PluginField, str]]:
    """Every field of PillarAttention in ways that no plugin may take, and what the message must say."""
    for field in ALL_ATTENTION_FIELDS:
        for kind in (FieldType.INT64, FieldType.FLOAT64, FieldType.FLOAT16):
            yield PluginField(field.name, kind, bytes(8), 1), "expected"
        yield PluginField(field.name, field.type, None, field.length), "null pointer"
        yield PluginField(field.name, field.type, bytes(8), 0), "length 0"
        if field.type != FieldType.CHAR:
            yield PluginField(field.name, field.type, bytes(8), 2), "length 2"
            yield plugin_field(field.name, "8"), "got char"
    yield plugin_field("rms_norm_eps", 1), "expected float32, got int32"
    yield plugin_field("num_heads", 6.0), "expected int32, got float32"


@pytest.mark.parametrize(("field", "message"), list(damages()))
def test_field_of_wrong_type_or_length(field: PluginField, message: str) -> None:
    refused = refusal(with_field(PILLAR_ATTENTION, field))
    assert f"field {field.name}" in refused
    assert message in refused


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_heads", 0, "expected 1 to"),
        ("num_heads", -4, "got -4"),
        ("num_heads", 7, "a multiple of num_kv_heads = 2, at most 16 times it, got 7"),
        ("num_heads", 34, "at most 16 times it, got 34"),
        ("num_kv_heads", 4, "a multiple of num_kv_heads = 4, at most 16 times it, got 6"),
        ("num_kv_heads", 0, "expected 1 to"),
        ("num_kv_heads", 2**31 - 1, f"got {2**31 - 1}"),
        ("head_dim", 80, "expected one of 64, 96, 128, got 80"),
        ("page_size", 8, "expected one of 16, 32, 64, got 8"),
        ("page_size", 128, "expected one of 16, 32, 64, got 128"),
        ("rms_norm_eps", 0.0, "above 0"),
        ("rms_norm_eps", -1e-6, "above 0"),
        ("rms_norm_eps", float("nan"), "finite"),
        ("rms_norm_eps", float("inf"), "finite"),
        ("qk_norm", 2, "expected 0 or 1, got 2"),
        ("aliased_io", -1, "expected 0 or 1, got -1"),
        ("kv_cache_dtype", "fp16", 'expected one of auto, fp8, got "fp16"'),
        ("score_planes", "plane", 'expected one of none, mean, diagonal, rows, got "plane"'),
        ("score_planes", "row", 'got "row"'),
        ("score_normalizer", "soft", 'expected one of draft, exact, got "soft"'),
    ],
)
def test_field_out_of_range(name: str, value: int | float | str, message: str) -> None:
    refused = refusal(with_field(PILLAR_ATTENTION, plugin_field(name, value)))
    assert f"field {'num_heads' if 'times' in message else name}: " in refused
    assert message in refused


@pytest.mark.parametrize(
    ("case", "name", "most"),
    [(ADD_RMS_NORM, "hidden_size", MAX_HIDDEN_SIZE), (SILU_MUL, "intermediate_size", MAX_INTERMEDIATE_SIZE)],
    ids=["hidden_size", "intermediate_size"],
)
def test_sizes_of_rows(case: PluginCase, name: str, most: int) -> None:
    """Kernels read eight numbers at a time, and registers hold so many of them."""
    for size, message in ((0, "expected 8 to"), (most + 8, f"expected 8 to {most}, got {most + 8}")):
        assert f"field {name}: {message}" in refusal(with_field(case, plugin_field(name, size)))
    for size in (9, 12, most - 1):
        refused = refusal(with_field(case, plugin_field(name, size)))
        assert f"field {name}: expected a multiple of 8, got {size}" in refused
    for size in (8, most):
        field = plugin_field(name, size)
        assert field in with_field(case, field).create().fields()
    without = case.with_fields(tuple(field for field in case.fields if field.name != name))
    assert f"field {name}: required" in refusal(without)


@pytest.mark.parametrize("text", [b"rows", b"rows\0"])
def test_texts_may_end_with_nul(text: bytes) -> None:
    plugin = with_field(PILLAR_ATTENTION, PluginField("score_planes", FieldType.CHAR, text, len(text))).create()
    assert PluginField("score_planes", FieldType.CHAR, b"rows", 4) in plugin.fields()


def test_defaults_are_serialised() -> None:
    fields = PILLAR_ATTENTION.create().fields()
    for name, value in (
        ("kv_cache_dtype", "auto"),
        ("rms_norm_eps", 1e-6),
        ("qk_norm", 0),
        ("aliased_io", 1),
        ("score_planes", "none"),
        ("score_normalizer", "draft"),
    ):
        assert plugin_field(name, value) in fields


# --- copies ---


def copies(case: PluginCase) -> Iterator[PluginHandle]:
    """All ways in which TensorRT makes a plugin from another."""
    plugin = case.create()
    runtime = plugin_library().create_handle(case.name, plugin.fields(), EnginePhase.RUNTIME)
    yield plugin.clone()
    yield runtime
    yield runtime.attach(with_context=False)
    yield runtime.attach(with_context=True)


@every_plugin
def test_copies_are_equal(case: PluginCase) -> None:
    plugin = case.create()
    assert plugin.identity() == (case.name, "1", "")
    assert set(case.fields) <= set(plugin.fields())
    for copy in copies(case):
        assert copy.fields() == plugin.fields()
        assert copy.identity() == plugin.identity()
        assert copy.aliases() == plugin.aliases() == case.aliases
        copy.on_shape_change(case.tensors())


def test_copy_outlives_the_original() -> None:
    copy = PILLAR_ATTENTION.create().clone().clone()  # the others are gone
    assert copy.fields() == PILLAR_ATTENTION.create().fields()
