"""The decoder's ops by plugins: what they are handed and what they give, and which models they are chosen for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fake_plugins import FakeLibrary
from plugin_cases import plugin_library
from sparsespec.builder.model_config import ModelConfig
from sparsespec.plugins.add_rms_norm.reference import add_rms_norm
from sparsespec.plugins.limits import MAX_HIDDEN_SIZE, MAX_INTERMEDIATE_SIZE, serves_rows
from sparsespec.plugins.plugin_host import PluginError
from sparsespec.plugins.plugin_signature import Fields, add_rms_norm_fields, silu_mul_fields
from sparsespec.runtime.device.attention_choice import choose_decoder_ops
from sparsespec.runtime.device.attention_ops import AttentionOps, OracleAttention, ReferenceAttention
from sparsespec.runtime.device.plugin_decoder_ops import PluginOps
from sparsespec.runtime.device.plugin_ops import PluginAttention
from sparsespec.runtime.device.split_products import linear_parts
from sparsespec.runtime.device.torch_ops import TorchOps
from tiny_models import tiny_model_config

MODEL = tiny_model_config()
CPU = torch.device("cpu")
TORCH = TorchOps(ReferenceAttention())


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.fixture
def library() -> FakeLibrary:
    return FakeLibrary()


@pytest.fixture
def ops(library: FakeLibrary) -> PluginOps:
    return PluginOps(ReferenceAttention(), library, num_multiprocessors=4)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_the_sum_is_hidden_itself(ops: PluginOps, rows: int, fresh_seed: int) -> None:
    hidden, delta, weight = (
        normal(*shape, seed=fresh_seed + place) for place, shape in enumerate(((rows, 24), (rows, 24), (24,)))
    )
    expected_total, expected_normed = TORCH.add_rms_norm(hidden, delta, weight, 1e-3)
    total, normed = ops.add_rms_norm(hidden, delta, weight, 1e-3)
    assert total is hidden
    assert torch.equal(total, expected_total)
    assert torch.equal(normed, expected_normed)


@pytest.mark.parametrize(("num_multiprocessors", "num_parts"), [(0, 1), (1, 1), (3, 3), (4, 4)])
def test_a_product_comes_in_parts(
    library: FakeLibrary, num_multiprocessors: int, num_parts: int, fresh_seed: int
) -> None:
    """24 columns of results are one block; its sums of 768 numbers make up to 4 parts."""
    shapes = ((5, 24), (5, 768), (24, 768), (24,))
    hidden, x, weight, norm_weight = (normal(*shape, seed=fresh_seed + place) for place, shape in enumerate(shapes))
    expected_total, expected_normed = add_rms_norm(hidden, linear_parts(x, weight, num_parts), norm_weight, 1e-3)
    ops = PluginOps(ReferenceAttention(), library, num_multiprocessors)
    total, normed = ops.linear_add_rms_norm(hidden, x, weight, norm_weight, 1e-3)
    assert total is hidden
    assert torch.equal(total, expected_total)
    assert torch.equal(normed, expected_normed)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_silu_mul(ops: PluginOps, rows: int, fresh_seed: int) -> None:
    gate_up = normal(rows, 48, seed=fresh_seed)
    assert torch.equal(ops.silu_mul(gate_up), TORCH.silu_mul(gate_up))


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_a_norm_leaves_its_operand(ops: PluginOps, rows: int, fresh_seed: int) -> None:
    x, weight = normal(rows, 24, seed=fresh_seed), normal(24, seed=fresh_seed + 1)
    before = x.clone()
    assert torch.equal(ops.rms_norm(x, weight, 1e-3), TORCH.rms_norm(x, weight, 1e-3))
    assert torch.equal(x, before)


def test_a_plugin_for_each_size_and_eps(ops: PluginOps, library: FakeLibrary) -> None:
    for size, eps in ((24, 1e-3), (24, 1e-3), (24, 1e-5), (16, 1e-5), (24, 1e-5)):
        hidden = normal(3, size, seed=1)
        ops.add_rms_norm(hidden, hidden.clone(), hidden[0].clone(), eps)
    for size in (24, 24, 16):
        ops.silu_mul(normal(3, 2 * size, seed=2))
    assert library.created == [
        ("AddRmsNorm", {"hidden_size": 24, "rms_norm_eps": 1e-3}),
        ("AddRmsNorm", {"hidden_size": 24, "rms_norm_eps": 1e-5}),
        ("AddRmsNorm", {"hidden_size": 16, "rms_norm_eps": 1e-5}),
        ("SiluMul", {"intermediate_size": 24}),
        ("SiluMul", {"intermediate_size": 16}),
    ]


@pytest.mark.parametrize("attention", [ReferenceAttention(), OracleAttention()], ids=["reference", "oracle"])
def test_torch_beside_attention_in_torch(attention: AttentionOps) -> None:
    assert type(choose_decoder_ops(attention, MODEL, CPU)) is TorchOps


def test_the_plugins_beside_attention_by_them(library: FakeLibrary) -> None:
    assert type(choose_decoder_ops(PluginAttention(library), MODEL, CPU)) is PluginOps


SIZES = (4, 8, 12, 576, 4100, MAX_HIDDEN_SIZE, MAX_HIDDEN_SIZE + 8, MAX_INTERMEDIATE_SIZE, MAX_INTERMEDIATE_SIZE + 8)


@pytest.mark.parametrize("size", SIZES)
def test_they_are_chosen_for_the_sizes_that_they_take(size: int, library: FakeLibrary) -> None:
    attention = PluginAttention(library)
    models = (replace(MODEL, hidden_size=size), replace(MODEL, intermediate_size=size))
    made = (("AddRmsNorm", add_rms_norm_fields(size, 1e-5)), ("SiluMul", silu_mul_fields(size)))
    for model, (name, fields) in zip(models, made, strict=True):
        chosen = type(choose_decoder_ops(attention, model, CPU))
        assert chosen is (PluginOps if _serves(model) else TorchOps)
        assert _serves(model) == _takes(name, fields)


def _serves(model: ModelConfig) -> bool:
    return serves_rows(model.hidden_size, model.intermediate_size)


def _takes(name: str, fields: Fields) -> bool:
    try:
        plugin_library().create(name, fields)
    except PluginError:
        return False
    return True
