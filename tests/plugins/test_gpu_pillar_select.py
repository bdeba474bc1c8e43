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
    if kind == "mostly nan":
        return torch.where(uniform < 0.7, -torch.nan, torch.where(uniform > 0.9, -torch.inf, uniform - 0.8))
    if kind == "zeros of both signs":
        return torch.where(uniform < 0.4, -0.0, torch.where(uniform < 0.8, 0.0, (uniform - 0.9) * 1e-6))
    if kind == "negative":
        return -uniform
    if kind == "around one":
        return 1 + (uniform * 8 - 4).round() / 1024
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
        moving_shift=ints([choose.choice((0, 40, choose.randint(1, 17))) for _ in slots]),
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
RARE_KINDS = ("mostly nan", "zeros of both signs", "negative", "around one")


@pytest.mark.parametrize("kind", KINDS + RARE_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("planes", [1, 2])
def test_positions_are_the_references(
    kernels: PluginAttention, kind: str, dtype: torch.dtype, planes: int, record: Record
) -> None:
    for seed, positions in enumerate((1, 40, 255, 2048, 2049, 5000)):
        given = _inputs(Sizes(3, 9, 7, planes, 2, positions), kind, dtype, seed)
        check(kernels, given, record)


@pytest.mark.parametrize("kind", KINDS + RARE_KINDS)
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
    """What `make test-sanitizer` looks at: a warp to a row, and two launches for rows of any length."""
    for dtype in (torch.float32, torch.float16):
        for sizes in (Sizes(2, 4, 3, 2, 2, 300), Sizes(1, 4, 4, 2, 1, 9001)):
            check(kernels, _inputs(sizes, "attention", dtype, 3), record)


def _of_length(given: SelectInputs[Tensor], recent_start: Tensor) -> SelectInputs[Tensor]:
    counts = [torch.minimum(count, recent_start) for count in (given.num_staying, given.num_moving)]
    return replace(given, recent_start=recent_start, num_staying=counts[0], num_moving=counts[1])


# Around the rows that the registers of each launch hold, in launch.cu, and a sixteenth more. Of the odd ones most begin
# where 16 bytes cannot be read at once.
BOUNDARIES = (2048, 2056, 4095, 4096, 4104, 4352, 4353, 4360, 8192, 8200, 8704, 8705, 8712, 16385, 24576, 24584, 32776)


@pytest.mark.parametrize("positions", BOUNDARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_around_what_registers_hold(
    kernels: PluginAttention, positions: int, dtype: torch.dtype, record: Record
) -> None:
    for seed, kind in enumerate(("attention", "ties", "nan and infinite")):
        given = _inputs(Sizes(1, 6, 5, 2, 2, positions), kind, dtype, seed)
        full = torch.full_like(given.recent_start, positions)
        for recent_start in (given.recent_start, full, full - 1):
            check(kernels, _of_length(given, recent_start), record)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_scores_at_any_address(kernels: PluginAttention, dtype: torch.dtype, record: Record) -> None:
    """Rows are multiples of 16 bytes, but the first begins between two of them."""
    given = _inputs(Sizes(2, 5, 4, 2, 2, 1024), "attention", dtype, 7)
    for offset in (1, 3):
        memory = given.scores.new_empty(given.scores.numel() + offset)
        scores = memory[offset:].view(given.scores.shape)
        scores.copy_(given.scores)
        check(kernels, replace(given, scores=scores), record)


@pytest.mark.parametrize("kind", ["attention", "equal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("positions", [65536, 131072, 131081, 200000])
def test_long_rows(kernels: PluginAttention, positions: int, dtype: torch.dtype, kind: str, record: Record) -> None:
    """Longer than registers, and the longest than shared memory too."""
    check(kernels, _inputs(Sizes(2, 3, 3, 2, 2, positions), kind, dtype, 5), record)


def test_nobody_scored(kernels: PluginAttention) -> None:
    given = _inputs(Sizes(2, 4, 3, 2, 2, 100), "normal", torch.float32, 1)
    given.scored_slot.fill_(-1)
    kernels.select(given)
    assert (given.pillars == -9).all()
