"""PillarSelect's kernel, called through the plugin host, against the torch reference: every position equal."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from built_plugins import built
from sparsespec.plugins.library import plugin_host_path, plugin_library_path
from sparsespec.plugins.pillar_select.inputs import SelectInputs
from sparsespec.plugins.pillar_select.reference import pillar_select
from sparsespec.plugins.plugin_host import PluginLibrary
from sparsespec.runtime.device.plugin_ops import PluginAttention

pytestmark = pytest.mark.gpu

Record = Callable[[SelectInputs[Tensor]], None]


@dataclass(frozen=True)
class Sizes:
    num_layers: int
    batch: int
    scored: int
    planes: int
    kv_heads: int
    positions: int


@pytest.fixture(scope="module")
def kernels() -> PluginAttention:
    return PluginAttention(PluginLibrary(built(plugin_library_path), built(plugin_host_path)))


def _values(kind: str, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=rng, device="cuda")
    if kind == "ties":
        return (uniform * 5).floor() / 5
    if kind == "equal":
        return torch.zeros_like(uniform)
    if kind == "attention":  # long-tailed, as probabilities are
        return (torch.randn(shape, generator=rng, device="cuda") * 3 - 8).exp()
    if kind == "nan and infinite":
        return torch.where(uniform < 0.1, torch.nan, torch.where(uniform > 0.9, torch.inf, uniform - 0.5))
    return torch.randn(shape, generator=rng, device="cuda")


def _length(choose: random.Random, longest: int) -> int:
    return min(longest, choose.choice((0, 1, 31, 32, 33, longest, choose.randint(1, longest))))


def _inputs(sizes: Sizes, kind: str, dtype: torch.dtype, seed: int) -> SelectInputs[Tensor]:
    rng, choose = torch.Generator("cuda").manual_seed(seed), random.Random(seed)
    shape = (sizes.num_layers, sizes.scored, sizes.planes, sizes.kv_heads, sizes.positions)
    slots = choose.sample(range(sizes.batch), sizes.scored)
    slots = [slot if choose.random() < 0.8 else -1 for slot in slots]
    lengths = [_length(choose, sizes.positions) for _ in range(sizes.batch)]
    counts = [
        [choose.choice((0, min(1, length), length, choose.randint(0, length))) for length in lengths] for _ in "ab"
    ]
    budget = sum(max(count) for count in counts) + 3

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device="cuda")

    return SelectInputs(
        scores=_values(kind, shape, rng).to(dtype),
        scored_slot=ints(slots),
        moving_shift=ints([choose.randint(0, 17) for _ in slots]),
        recent_start=ints(lengths),
        num_staying=ints(counts[0]),
        num_moving=ints(counts[1]),
        pillars=torch.full(
            (sizes.num_layers, sizes.batch, sizes.kv_heads, budget), -9, dtype=torch.int32, device="cuda"
        ),
    )


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Record:
    """Says at the end of the run how many selections were compared, and how large."""
    return lambda given: record_property("PillarSelect equals its reference, pillars", given.pillars.numel())


def check(kernels: PluginAttention, given: SelectInputs[Tensor], record: Record) -> None:
    record(given)
    expected = replace(given, pillars=given.pillars.clone())
    kernels.select(given)
    pillar_select(expected)
    assert torch.equal(given.pillars, expected.pillars)


KINDS = ("normal", "ties", "equal", "attention", "nan and infinite")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("planes", [1, 2])
def test_positions_are_the_references(
    kernels: PluginAttention, kind: str, dtype: torch.dtype, planes: int, record: Record
) -> None:
    for seed, positions in enumerate((1, 40, 255, 2048, 2049, 5000)):
        given = _inputs(Sizes(3, 9, 7, planes, 2, positions), kind, dtype, seed)
        check(kernels, given, record)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_seeds(kernels: PluginAttention, fresh_seed: int, kind: str, record: Record) -> None:
    """Other sizes and numbers at every run."""
    choose = random.Random(fresh_seed)
    for _ in range(16):
        batch, longest = choose.randint(1, 40), choose.choice((64, 1000, 9000))
        sizes = Sizes(
            choose.randint(1, 4),
            batch,
            choose.randint(1, batch),
            choose.choice((1, 2)),
            choose.randint(1, 8),
            choose.randint(1, longest),
        )
        dtype = choose.choice((torch.float32, torch.float16))
        check(kernels, _inputs(sizes, kind, dtype, choose.randrange(2**31)), record)


def test_small_select(kernels: PluginAttention, record: Record) -> None:
    """What `make test-sanitizer` looks at."""
    for dtype in (torch.float32, torch.float16):
        given = _inputs(Sizes(2, 4, 3, 2, 2, 300), "attention", dtype, 3)
        check(kernels, given, record)


def test_long_rows(kernels: PluginAttention, record: Record) -> None:
    given = _inputs(Sizes(2, 3, 3, 2, 2, 131072), "attention", torch.float16, 5)
    check(kernels, given, record)


def test_nobody_scored(kernels: PluginAttention) -> None:
    given = _inputs(Sizes(2, 4, 3, 2, 2, 100), "normal", torch.float32, 1)
    given.scored_slot.fill_(-1)
    kernels.select(given)
    assert (given.pillars == -9).all()
