"""Rotary position embeddings (Su et al. 2021) and the ways in which models stretch them over longer contexts.

Plain numbers: whoever runs a network makes its table of cosines and sines from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sparsespec.builder.config_io import MAX_INT, check_range
from sparsespec.builder.errors import InputError

_LEAST_DIVISOR = 1e-6


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (Chen et al. 2023)."""

    rope_type: Literal["linear"]
    factor: float

    amplitude = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def frequencies(self, head_dim: int, theta: float) -> list[float]:
        """All of them lower."""
        return [frequency / self.factor for frequency in _unscaled(head_dim, theta)]


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1: long waves are stretched by `factor`, short ones kept, those between interpolated."""

    rope_type: Literal["llama3"]
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    amplitude = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        check_positive("low_freq_factor", self.low_freq_factor)
        check_positive("high_freq_factor", self.high_freq_factor)
        if self.high_freq_factor <= self.low_freq_factor:
            raise InputError(
                f"high_freq_factor must be above low_freq_factor {self.low_freq_factor}, found {self.high_freq_factor}"
            )
        check_range("original_max_position_embeddings", self.original_max_position_embeddings, least=1)

    def frequencies(self, head_dim: int, theta: float) -> list[float]:
        """Interpolated by how often a wave turns over the original context."""
        unscaled = _unscaled(head_dim, theta)
        return [frequency * _mix(self._kept(frequency), self.factor) for frequency in unscaled]

    def _kept(self, frequency: float) -> float:
        turns = self.original_max_position_embeddings * frequency / (2 * math.pi)
        return (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): stretched by a ramp over the dimensions; cosines and sines times `amplitude`."""

    rope_type: Literal["yarn"]
    factor: float
    beta_fast: float
    beta_slow: float
    original_max_position_embeddings: int
    amplitude: float  # a checkpoint's "attention_factor", or yarn_amplitude
    truncate: bool = True  # the ramp runs between whole dimensions

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        for name in ("beta_fast", "beta_slow", "amplitude"):
            check_positive(name, getattr(self, name))
        if self.beta_fast < self.beta_slow:
            raise InputError(f"beta_fast must be at least beta_slow {self.beta_slow}, found {self.beta_fast}")
        check_range("original_max_position_embeddings", self.original_max_position_embeddings, least=1)

    def frequencies(self, head_dim: int, theta: float) -> list[float]:
        """Kept where a wave turns over beta_fast times in the original context, stretched below beta_slow turns."""
        low, high = (self._dimension(head_dim, theta, turns) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = high - low if high != low else 0.001
        unscaled = _unscaled(head_dim, theta)
        return [frequency * _mix(1 - (index - low) / width, self.factor) for index, frequency in enumerate(unscaled)]

    def _dimension(self, head_dim: int, theta: float, turns: float) -> float:
        """The dimension, between whole ones, whose wave turns so often over the original context."""
        # A logarithm for each, as the quotient of the largest and the smallest floats is none.
        length = math.log(self.original_max_position_embeddings) - math.log(turns) - math.log(2 * math.pi)
        return head_dim * length / (2 * math.log(theta))


@dataclass(frozen=True)
class FrequencyDivisors:
    """Every frequency divided by its own number, as GGUF files keep Llama 3's scaling."""

    rope_type: Literal["divisors"]
    divisors: tuple[float, ...]

    amplitude = 1.0

    def __post_init__(self) -> None:
        for divisor in self.divisors:
            check_divisor("divisors", divisor)

    def frequencies(self, head_dim: int, theta: float) -> list[float]:
        """Raises InputError when there is not one divisor for each."""
        unscaled = _unscaled(head_dim, theta)
        if len(self.divisors) != len(unscaled):
            raise InputError(f"divisors: expected {len(unscaled)}, half of head_dim, found {len(self.divisors)}")
        return [frequency / divisor for frequency, divisor in zip(unscaled, self.divisors, strict=True)]


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | FrequencyDivisors


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> list[float]:
    """[head_dim / 2] radians per position."""
    return _unscaled(head_dim, theta) if scaling is None else scaling.frequencies(head_dim, theta)


def longest_context(max_position_embeddings: int, scaling: RopeScaling | None) -> int:
    """Tokens up to which positions are meant to work.

    Checkpoints are at odds over whether max_position_embeddings counts what `linear` or `yarn` add; the larger holds.
    """
    if isinstance(scaling, LinearScaling):
        reach = scaling.factor * max_position_embeddings
    elif isinstance(scaling, YarnScaling):
        reach = scaling.factor * scaling.original_max_position_embeddings
    else:
        return max_position_embeddings
    return max(int(min(reach, MAX_INT)), max_position_embeddings)


def yarn_amplitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's temperature for cosines and sines (the square root of equation 22's 1/t)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def check_positive(name: str, value: float) -> None:
    """Raises InputError for what is no finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} must be finite and above 0, found {value}")


def check_divisor(name: str, value: float) -> None:
    """Raises InputError for what no frequency may be divided by; below a millionth, angles lose all their digits."""
    check_positive(name, value)
    if value < _LEAST_DIVISOR:
        raise InputError(f"{name} must be at least {_LEAST_DIVISOR}, found {value}")


def _check_factor(factor: float) -> None:
    if not (math.isfinite(factor) and factor >= 1):
        raise InputError(f"factor must be finite and at least 1, found {factor}")


def _unscaled(head_dim: int, theta: float) -> list[float]:
    return [theta ** (-index / head_dim) for index in range(0, head_dim, 2)]


def _mix(kept: float, factor: float) -> float:
    """1 where all is kept, 1 / factor where nothing is."""
    kept = min(max(kept, 0.0), 1.0)
    return kept + (1 - kept) / factor
