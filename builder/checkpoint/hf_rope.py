"""Rotary embeddings in config.json: `rope_theta` and `rope_scaling` of transformers 4, `rope_parameters` of 5.

What transformers 5 computes from them is what counts. For YaRN that is `factor` as it is written, also where
`max_position_embeddings` is another multiple of the original context (Qwen3's own advice has 40960, 32768 and 4).
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsespec.builder.checkpoint.hf_json import JsonFile
from sparsespec.builder.rope import (
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
    check_positive,
    yarn_amplitude,
)

_DEFAULT_THETA = 10000.0
_COMMON_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_YARN_KEYS = (
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "beta_fast",
    "beta_slow",
    "truncate",
    "finetuned",  # changes nothing
)
_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": _YARN_KEYS,
}


@dataclass(frozen=True)
class Rope:
    """What a checkpoint says of its rotary embeddings."""

    theta: float
    scaling: RopeScaling | None


def read_rope(config: JsonFile, max_position_embeddings: int) -> Rope:
    """Raises CheckpointError for what `parse_rope` refuses."""
    _refuse_partial(config)
    rope = _rope_section(config)
    original = rope.get("original_max_position_embeddings", max_position_embeddings)
    # Beside the section it has precedence.
    original = config.get("original_max_position_embeddings", original)
    return parse_rope(rope, config.get("rope_theta", _DEFAULT_THETA), original)


def parse_rope(rope: JsonFile, theta: float, original: int) -> Rope:
    """The section that describes a scaling; `theta` counts where it has none, `original` is the context before it.

    Raises CheckpointError for a kind that is not supported, and for a key that its kind does not have.
    """
    _refuse_partial(rope)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _KEYS:
        raise rope.error(f"rope_type: expected one of {', '.join(_KEYS)}, found {kind!r:.200}")
    known = (*_COMMON_KEYS, *_KEYS[kind])
    for key, value in rope.values.items():
        if key not in known and value is not None:
            raise rope.error(f"{key:.200}: expected one of {', '.join(known)} for {kind!r}, found {value!r:.200}")
    with rope.naming():
        return Rope(rope.get("rope_theta", theta), _scaling(kind, rope, original))


def _refuse_partial(place: JsonFile) -> None:
    part = place.get("partial_rotary_factor", 1.0)
    if part != 1:
        raise place.error(f"partial_rotary_factor: only 1.0 is supported, found {part}")


def _rope_section(config: JsonFile) -> JsonFile:
    """transformers 5 reads the older spelling where a file has both."""
    scaling = config.section("rope_scaling")
    return scaling if scaling.values else config.section("rope_parameters")


def _scaling(kind: str, rope: JsonFile, original: int) -> RopeScaling | None:
    if kind == "linear":
        return LinearScaling("linear", rope.require_float("factor"))
    if kind == "llama3":
        return Llama3Scaling(
            rope_type="llama3",
            factor=rope.require_float("factor"),
            low_freq_factor=rope.require_float("low_freq_factor"),
            high_freq_factor=rope.require_float("high_freq_factor"),
            original_max_position_embeddings=original,
        )
    return _yarn(rope, original) if kind == "yarn" else None


def _yarn(rope: JsonFile, original: int) -> YarnScaling:
    factor = rope.require_float("factor")
    return YarnScaling(
        rope_type="yarn",
        factor=factor,
        # 0 counts as absent.
        beta_fast=rope.get("beta_fast", 0.0) or 32.0,
        beta_slow=rope.get("beta_slow", 0.0) or 1.0,
        original_max_position_embeddings=original,
        amplitude=_yarn_amplitude(rope, factor),
        # A null is transformers' False, unlike a key that is not there.
        truncate=rope.get("truncate", "truncate" not in rope.values),
    )


def _yarn_amplitude(rope: JsonFile, factor: float) -> float:
    if rope.values.get("attention_factor") is not None:
        amplitude = rope.require_float("attention_factor")
        check_positive("attention_factor", amplitude)
        return amplitude
    mscale, mscale_all_dim = rope.get("mscale", 0.0), rope.get("mscale_all_dim", 0.0)
    if not (mscale and mscale_all_dim):
        return yarn_amplitude(factor)
    check_positive("mscale", mscale)
    check_positive("mscale_all_dim", mscale_all_dim)
    return yarn_amplitude(factor, mscale) / yarn_amplitude(factor, mscale_all_dim)
