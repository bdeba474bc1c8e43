"""How a GGUF file stretches rotary embeddings, in llama.cpp's terms."""

from __future__ import annotations

import math

from sparsespec.builder.checkpoint.gguf_reader import GgufMetadata
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.model_config import Family
from sparsespec.builder.rope import FrequencyDivisors, LinearScaling, RopeScaling, YarnScaling, yarn_amplitude

ROPE_FREQS = "rope_freqs.weight"

_KNOWN = (
    "type",
    "factor",
    "attn_factor",
    "original_context_length",
    "finetuned",  # says how the model was trained, changes nothing
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
)


def read_rope_scaling(file: GgufMetadata, family: Family, head_dim: int) -> RopeScaling | None:
    """Raises CheckpointError for a way of scaling that is not supported, InputError for impossible constants."""
    prefix = f"{family}.rope.scaling."
    _refuse_unknown(file, prefix)
    # llama.cpp takes a factor without a type for a linear one.
    kind = file.get(f"{prefix}type", "linear")
    if kind == "yarn":
        return _yarn(file, family, prefix)
    _refuse_amplitude(file, prefix)
    if kind == "none":
        return _divided(file, head_dim, 1.0)
    if kind == "linear":
        return _divided(file, head_dim, _factor(file, family, prefix))
    raise CheckpointError(f"{file.path}: {prefix}type: expected one of none, linear, yarn, found {kind!r:.200}")


def _factor(file: GgufMetadata, family: Family, prefix: str) -> float:
    """The newer key, or the older one; 0 stands for none."""
    factor = file.decimal(f"{prefix}factor", 0.0) or file.decimal(f"{family}.rope.scale_linear", 0.0)
    return factor or 1.0


def _divided(file: GgufMetadata, head_dim: int, factor: float) -> RopeScaling | None:
    if ROPE_FREQS in file.tensors:  # what the converter makes of Llama 3's scaling
        divisors = file.values(ROPE_FREQS, (head_dim // 2,)).tolist()
        return FrequencyDivisors("divisors", tuple(factor * divisor for divisor in divisors))
    return None if factor == 1 else LinearScaling("linear", factor)


def _yarn(file: GgufMetadata, family: Family, prefix: str) -> YarnScaling:
    factor = _factor(file, family, prefix)
    natural = yarn_amplitude(factor)
    _expect(file, f"{prefix}yarn_ext_factor", 1.0)
    # transformers means all of the amplitude by it, llama.cpp something that it cancels again: they agree on this only.
    _expect(file, f"{prefix}yarn_attn_factor", natural)
    if ROPE_FREQS in file.tensors:
        raise CheckpointError(f"{file.path}: {ROPE_FREQS}: not supported beside {prefix}type 'yarn'")
    return YarnScaling(
        rope_type="yarn",
        factor=factor,
        beta_fast=file.decimal(f"{prefix}yarn_beta_fast", 32.0),
        beta_slow=file.decimal(f"{prefix}yarn_beta_slow", 1.0),
        original_max_position_embeddings=(
            file.get(f"{prefix}original_context_length", 0) or file.require_int(f"{family}.context_length")
        ),
        amplitude=natural * file.decimal(f"{prefix}attn_factor", 1.0),
    )


def _refuse_unknown(file: GgufMetadata, prefix: str) -> None:
    unknown = [key for key in file.keys(prefix) if key.removeprefix(prefix) not in _KNOWN]
    if unknown:
        raise CheckpointError(f"{file.path}: {unknown[0]:.200}: not supported; expected one of {', '.join(_KNOWN)}")


def _refuse_amplitude(file: GgufMetadata, prefix: str) -> None:
    for name in ("attn_factor", "yarn_attn_factor"):
        _expect(file, f"{prefix}{name}", 1.0)
    _expect(file, f"{prefix}yarn_ext_factor", 0.0)


def _expect(file: GgufMetadata, key: str, expected: float) -> None:
    found = file.decimal(key, expected)
    if not math.isclose(found, expected, rel_tol=1e-6):
        raise CheckpointError(f"{file.path}: {key}: only {expected:.6g} is supported here, found {found:.6g}")
