"""The kernels of AddRmsNorm and SiluMul, called through the plugin host, against their torch references.

Sums are equal. Statistics are added up in another order, so that a norm may round to a neighbour; so may exp.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from torch import Tensor

from built_plugins import built
from sparsespec.plugins.add_rms_norm.reference import add_rms_norm
from sparsespec.plugins.library import plugin_host_path, plugin_library_path
from sparsespec.plugins.limits import MAX_HIDDEN_SIZE, MAX_PARTS, MAX_SPLIT_HIDDEN_SIZE
from sparsespec.plugins.plugin_host import PluginError, PluginLibrary
from sparsespec.plugins.silu_mul.reference import silu_mul
from sparsespec.runtime.device.attention_ops import ReferenceAttention
from sparsespec.runtime.device.plugin_decoder_ops import PluginOps

pytestmark = pytest.mark.gpu

EPS = 1e-5
DTYPES = [torch.bfloat16, torch.float16]
# Below a warp, between whole warps, of one to four vectors for each thread, and the most.
HIDDEN_SIZES = (8, 64, 576, 1536, 4096, 4104, 5120, 8192, 8200, 12288, 16392, MAX_HIDDEN_SIZE)
INTERMEDIATE_SIZES = (8, 64, 576, 1536, 4096, 12288, 14336, 28672)
ROWS = (0, 1, 2, 7, 129)

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def ops() -> PluginOps:
    return PluginOps(ReferenceAttention(), PluginLibrary(built(plugin_library_path), built(plugin_host_path)), 132)


@contextmanager
def poisoned() -> Iterator[None]:
    """Outputs are full of NaN before they are written."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def check_near(found: Tensor, expected: Tensor) -> float:
    """No number further off than two roundings that go the other way, and few at all. Returns their share."""
    eps, least = torch.finfo(expected.dtype).eps, torch.finfo(expected.dtype).smallest_normal
    torch.testing.assert_close(found, expected, rtol=2 * eps * (1 + eps), atol=2 * eps * least)
    unequal = int((found != expected).sum())
    assert unequal <= 2 + 0.01 * expected.numel()
    return unequal / max(1, expected.numel())


def parts_of(size: int) -> range:
    """How many parts may be added to rows of such a size."""
    return range(1, MAX_PARTS + 1) if size <= MAX_SPLIT_HIDDEN_SIZE else range(1, 2)


def check_add_rms_norm(
    ops: PluginOps, rows: int, size: int, dtype: torch.dtype, seed: int, num_parts: int = 1
) -> float:
    """Between two rows of NaN, which stay."""
    around = normal(rows + 2, size, dtype=dtype, seed=seed)
    around[[0, -1]] = torch.nan
    hidden, delta = around[1:-1], 3 * normal(num_parts, rows, size, dtype=dtype, seed=seed + 1)
    weight = 1 + normal(size, dtype=dtype, seed=seed + 2) / 4
    expected_total, expected_normed = add_rms_norm(hidden, delta, weight, EPS)
    given = delta.clone()
    with poisoned():
        total, normed = ops.add_parts(hidden, delta, weight, EPS)
    assert total is hidden
    assert torch.equal(total, expected_total)
    assert torch.equal(delta, given)
    assert around[[0, -1]].isnan().all()
    return check_near(normed, expected_normed)


def check_silu_mul(ops: PluginOps, rows: int, size: int, dtype: torch.dtype, seed: int) -> float:
    gate_up = 3 * normal(rows, 2 * size, dtype=dtype, seed=seed)
    with poisoned():
        found = ops.silu_mul(gate_up)
    return check_near(found, silu_mul(gate_up))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", HIDDEN_SIZES)
def test_add_rms_norm(ops: PluginOps, size: int, dtype: torch.dtype, fresh_seed: int, record_property: Record) -> None:
    for rows, num_parts in product(ROWS, parts_of(size)):
        share = check_add_rms_norm(ops, rows, size, dtype, fresh_seed + rows, num_parts)
        record_property("AddRmsNorm beside its reference, share of neighbours", share)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", INTERMEDIATE_SIZES)
def test_silu_mul(ops: PluginOps, size: int, dtype: torch.dtype, fresh_seed: int, record_property: Record) -> None:
    for rows in ROWS:
        share = check_silu_mul(ops, rows, size, dtype, fresh_seed + rows)
        record_property("SiluMul beside its reference, share of neighbours", share)


def test_any_size(ops: PluginOps, fresh_seed: int) -> None:
    choose = random.Random(fresh_seed)
    for _ in range(20):
        rows, dtype, seed = choose.randint(0, 300), choose.choice(DTYPES), choose.randrange(2**31)
        size = 8 * choose.randint(1, 2048)
        check_add_rms_norm(ops, rows, size, dtype, seed, choose.choice(parts_of(size)))
        check_silu_mul(ops, rows, 8 * choose.randint(1, 2048), dtype, seed)


def test_many_rows(ops: PluginOps, fresh_seed: int) -> None:
    check_add_rms_norm(ops, 4096, 4096, torch.bfloat16, fresh_seed)
    check_silu_mul(ops, 4096, 12288, torch.bfloat16, fresh_seed)


def test_small_row_ops(ops: PluginOps) -> None:
    """What `make test-sanitizer` looks at: lanes and warps without numbers, and several vectors for each thread."""
    for dtype in DTYPES:
        for size in (24, 1032, 4104, 8200):
            for num_parts in parts_of(size):
                check_add_rms_norm(ops, 3, size, dtype, size, num_parts)
            check_silu_mul(ops, 3, size, dtype, size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_beyond_the_range(ops: PluginOps, dtype: torch.dtype) -> None:
    """Squares and exps that overflow 16 bits or even float32, infinities and NaN: each where the reference has it."""
    numbers = torch.tensor([0.0, -0.0, 1.0, -300.0, 6e4, -6e4, 100.0, -100.0], dtype=dtype, device="cuda")
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0, -1.0, 0.0, 88.0, -88.0], dtype=dtype, device="cuda")
    hidden, delta = torch.stack([numbers, odd, numbers]), torch.stack([numbers, numbers, odd])
    expected_total, expected_normed = add_rms_norm(hidden, delta[None], numbers, EPS)
    total, normed = ops.add_rms_norm(hidden, delta, numbers, EPS)
    torch.testing.assert_close(total, expected_total, rtol=0, atol=0, equal_nan=True)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(normed, expected_normed, rtol=2 * eps, atol=0, equal_nan=True)
    gate_up = torch.stack([torch.cat((numbers, odd)), torch.cat((odd, numbers))])
    torch.testing.assert_close(ops.silu_mul(gate_up), silu_mul(gate_up), rtol=2 * eps, atol=0, equal_nan=True)


@pytest.mark.parametrize(("size", "num_parts"), [(576, 0), (576, MAX_PARTS + 1), (MAX_SPLIT_HIDDEN_SIZE + 8, 2)])
def test_other_numbers_of_parts_are_refused(ops: PluginOps, size: int, num_parts: int) -> None:
    hidden = torch.zeros(3, size, dtype=torch.bfloat16, device="cuda")
    with pytest.raises(PluginError, match=f"expected a delta of 1 to .* parts .*, got {num_parts}"):
        ops.add_parts(hidden, hidden.new_zeros(num_parts, 3, size), hidden[0].clone(), EPS)


@pytest.mark.parametrize("rows", [1, 32, 192, 600])
@pytest.mark.parametrize(("out_size", "in_size"), [(576, 1536), (576, 576), (4096, 12288)])
def test_products_in_parts(ops: PluginOps, out_size: int, in_size: int, rows: int, fresh_seed: int) -> None:
    """Beside float64; each part and the sum are rounded."""
    x, weight, hidden = (
        normal(*shape, dtype=torch.bfloat16, seed=fresh_seed + place)
        for place, shape in enumerate(((rows, in_size), (out_size, in_size), (rows, out_size)))
    )
    weight /= in_size**0.5
    expected = hidden.double() + x.double() @ weight.double().T
    total, _ = ops.linear_add_rms_norm(hidden, x, weight, weight.new_ones(out_size), EPS)
    eps = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(total.double(), expected, rtol=eps, atol=8 * eps)


def test_in_a_cuda_graph(ops: PluginOps, fresh_seed: int) -> None:
    """A replay takes the numbers that its inputs have by then."""
    hidden, delta, gate_up, weight = (
        torch.zeros(shape, dtype=torch.bfloat16, device="cuda") for shape in ((9, 576), (9, 576), (9, 3072), (576,))
    )
    ops.add_rms_norm(hidden, delta, weight, EPS)
    ops.silu_mul(gate_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _, normed = ops.add_rms_norm(hidden, delta, weight, EPS)
        gated = ops.silu_mul(gate_up)
    for seed in range(fresh_seed, fresh_seed + 3):
        for place, tensor in enumerate((hidden, delta, gate_up, weight)):
            tensor.copy_(normal(*tensor.shape, dtype=tensor.dtype, seed=4 * seed + place))
        expected_total, expected_normed = add_rms_norm(hidden, delta[None], weight, EPS)
        normed.fill_(torch.nan)
        gated.fill_(torch.nan)
        graph.replay()
        assert torch.equal(hidden, expected_total)
        check_near(normed, expected_normed)
        check_near(gated, silu_mul(gate_up))


def chain(ops: PluginOps, hidden: Tensor, delta: Tensor, weight: Tensor, between: Callable[[], None]) -> Tensor:
    """Launches that each read or overwrite what the one before wrote, or read."""
    rows, size = hidden.shape
    for _ in range(40):
        hidden, normed = ops.add_rms_norm(hidden, delta, weight, EPS)
        between()
        gated = ops.silu_mul(normed.view(rows // 2, 2 * size))
        between()
        ops.add_rms_norm(hidden[: rows // 2], gated, weight, EPS)
        between()
    return hidden


@pytest.mark.parametrize(("rows", "size"), [(2, 64), (16, 4096), (2048, 1024)])
def test_each_launch_waits_for_the_one_before(ops: PluginOps, rows: int, size: int, fresh_seed: int) -> None:
    """They start early where the one before lets them: the same bits as when each starts after its end."""
    start, delta = (normal(rows, size, dtype=torch.bfloat16, seed=fresh_seed + index) for index in range(2))
    weight = normal(size, dtype=torch.bfloat16, seed=fresh_seed + 2)
    expected = chain(ops, start.clone(), delta, weight, torch.cuda.synchronize)
    hidden = start.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = chain(ops, hidden, delta, weight, lambda: None)
    for _ in range(5):
        assert torch.equal(chain(ops, start.clone(), delta, weight, lambda: None), expected)
        hidden.copy_(start)
        graph.replay()
        assert torch.equal(captured, expected)
