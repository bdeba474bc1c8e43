"""Random numbers: uniform, unrelated to their neighbours, and a function of their key alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from chi_square import FALSE_ALARM_RATE, p_value
from sparsespec.runtime.device.rng import Purpose, exponentials, uniform

COUNT = 40_000
BINS = 8


def keys(value: int) -> Tensor:
    return torch.full((COUNT,), value)


def numbers(seed: int = 0, position: int = 0, purpose: int = 0, along: str = "position") -> Tensor:
    """COUNT numbers from this key on, along one of its parts."""
    steps = torch.arange(COUNT)
    parts = {"seed": keys(seed), "position": keys(position), "purpose": keys(purpose)}
    parts[along] = parts[along] + steps
    return uniform(parts["seed"], parts["position"], parts["purpose"])


@pytest.mark.parametrize("along", ["seed", "position", "purpose"])
@pytest.mark.parametrize("start", [0, 12345, 2**31 - COUNT // 2, 2**62])
def test_numbers_are_uniform_along_each_part_of_the_key(along: str, start: int) -> None:
    """Chi-square over 64 bins at a false-alarm rate of 1e-6 per case."""
    drawn = numbers(seed=start, along=along)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = (drawn * 64).long().bincount(minlength=64)
    assert p_value(counts, torch.ones(64)) > FALSE_ALARM_RATE


@pytest.mark.parametrize("along", ["seed", "position", "purpose"])
@pytest.mark.parametrize("neighbour", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -1, 0), (0, 1, 1), (0, 1, -1), (1, 1, 1)])
def test_neighbouring_numbers_are_independent(along: str, neighbour: tuple[int, int, int]) -> None:
    """Chi-square of pairs over an 8 x 8 grid at a false-alarm rate of 1e-6 per case."""
    first = numbers(7, 1, 2, along)
    second = numbers(7 + neighbour[0], 1 + neighbour[1], 2 + neighbour[2], along)
    cells = (first * BINS).long() * BINS + (second * BINS).long()
    assert p_value(cells.bincount(minlength=BINS**2), torch.ones(BINS**2)) > FALSE_ALARM_RATE


def test_low_bits_are_uniform_too() -> None:
    """Numbers have 53 bits: the lowest 6 of them, chi-square at a false-alarm rate of 1e-6."""
    low = (numbers() * 2.0**53).long() % 64
    assert p_value(low.bincount(minlength=64), torch.ones(64)) > FALSE_ALARM_RATE


def test_no_two_keys_share_a_number() -> None:
    """Seeds, positions and purposes of 30 x 40 x 10; two of 12000 numbers of 53 bits are equal at odds of 1e-8."""
    seed, position, purpose = torch.arange(30)[:, None, None], torch.arange(40)[:, None], torch.arange(10)
    drawn = uniform(seed, position, purpose)
    assert drawn.unique().numel() == 30 * 40 * 10


def test_a_number_is_the_same_alone_in_a_batch_and_again() -> None:
    generator = torch.Generator().manual_seed(0)
    seed, position = (torch.randint(0, 2**62, (50,), generator=generator) for _ in range(2))
    purpose = torch.arange(50) % 9
    batch = uniform(seed, position, purpose)
    assert torch.equal(batch, uniform(seed, position, purpose))
    assert torch.equal(batch.flip(0), uniform(seed.flip(0), position.flip(0), purpose.flip(0)))
    for i in range(50):
        assert torch.equal(batch[i], uniform(seed[i], position[i], purpose[i]))


def test_purposes_leave_room_for_every_draft() -> None:
    """Drafts count up from DRAFT, so it must be the last."""
    assert max(Purpose) == Purpose.DRAFT
    assert len(dict.fromkeys(int(purpose) for purpose in Purpose)) == 4


def test_numbers_never_change() -> None:
    """A seed must give the same answer in every version, on every device: computed by hand with unbounded integers."""
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    assert mix(golden) == 0xE220A8397B1DCDAF  # the first number of splitmix64 seeded with 0
    for seed, position, purpose in ((0, 0, 0), (1, 2, 3), (2**62, 131071, 18)):
        state = mix((seed + golden) & mask)
        state = mix(state ^ (position * golden & mask))
        state = mix(state ^ ((purpose * golden + 1) & mask))
        found = uniform(torch.tensor(seed), torch.tensor(position), torch.tensor(purpose))
        assert float(found) == (state >> 11) / 2**53


def test_exponentials_are_halves_of_splitmix64_numbers() -> None:
    """Computed by hand with unbounded integers: a seed must give the same answer in every version."""
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    for seed, position in ((0, 0), (2**62, 131071)):
        stream = mix((seed + golden) & mask)
        stream = mix(stream ^ (position * golden & mask))
        stream = mix(stream ^ ((-golden + 1) & mask))
        pairs = [mix((stream + (index + 1) * golden) & mask) for index in range(4)]
        bits = [half for pair in pairs for half in (pair % 2**32, pair >> 32)][:7]
        found = exponentials(torch.tensor([seed]), torch.tensor([position]), 7)
        expected = torch.tensor([[-math.log1p(-(each + 0.5) / 2**32) for each in bits]], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)


def test_exponentials_are_exponential_along_tokens_and_positions() -> None:
    """Chi-square over 64 bins at a false-alarm rate of 1e-6."""
    for seed, position, count in (([3], [9], COUNT), ([3] * COUNT, list(range(COUNT)), 1)):
        drawn = exponentials(torch.tensor(seed), torch.tensor(position), count).flatten()
        counts = ((-drawn).exp() * 64).long().bincount(minlength=64)
        assert p_value(counts, torch.ones(64)) > FALSE_ALARM_RATE
