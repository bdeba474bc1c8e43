"""Random numbers as a pure function of (seed, position, purpose): results do not depend on the batch or on history."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a random number at a position decides.

    Drafts use DRAFT + draft_index. The index matters for losslessness: a draft that was discarded has already shaped
    the pillars (its row was scored), hence the distribution of the next draft at its position; drawing that one with
    the same number would make draw and distribution dependent, and rejection sampling assumes they are not.
    """

    RACE = -1  # drafts and verifications alike: see exponentials
    ACCEPT = 0
    TARGET = 1
    DRAFT = 2


def uniform(seed: Tensor, position: Tensor, purpose: Tensor) -> Tensor:
    """Numbers in [0, 1) of 53 bits, fp64, for int64 tensors that broadcast against each other.

    Three rounds of the splitmix64 finaliser (Steele, Lea and Flood, OOPSLA 2014), one per key.
    """
    return _shift_right(_random_bits(seed, position, purpose), 11).double() * 2.0**-53


def exponentials(seed: Tensor, position: Tensor, count: int) -> Tensor:
    """[n, count] exponential numbers, fp64, of 32 random bits each: `count` tokens' at positions [n] of seeds [n].

    A race: the token with the least exponential / probability is a draw from the distribution (the Gumbel-max trick,
    Maddison et al. 2014), and distributions that are alike have the same winner most of the time. The bits are halves
    of the numbers of a splitmix64 generator, one for each seed and position.
    """
    stream = _random_bits(seed, position, torch.full_like(position, Purpose.RACE))
    index = torch.arange((count + 1) // 2, device=seed.device)
    pairs = _mix(stream[:, None] + (index + 1) * _GOLDEN)
    bits = torch.stack((pairs & 0xFFFFFFFF, _shift_right(pairs, 32)), dim=2).flatten(1)[:, :count]
    return -torch.log1p((bits.double() + 0.5) * -(2.0**-32))


def _random_bits(seed: Tensor, position: Tensor, purpose: Tensor) -> Tensor:
    state = _mix(seed + _GOLDEN)
    state = _mix(state ^ (position * _GOLDEN))
    return _mix(state ^ (purpose * _GOLDEN + 1))


_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift_right(x, 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64."""
    return torch.bitwise_right_shift(x, bits) & ((1 << (64 - bits)) - 1)
