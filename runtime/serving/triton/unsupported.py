"""Tensors that clients of TensorRT-LLM's backend send, and that only work here where they ask for nothing."""

from __future__ import annotations

from sparsespec.builder.errors import RequestError
from sparsespec.runtime.serving.triton.tensors import Inputs

_TEXTS = {
    "bad_words": "words cannot be forbidden",
    "decoder_text_input": "there are no encoder-decoder models",
    "embedding_bias_words": "logits cannot be biased",
    "guided_decoding_guide": "there is no guided decoding",
    "guided_decoding_guide_type": "there is no guided decoding",
}
_FLAGS = {
    "return_context_logits": "there are log-probabilities (return_log_probs), but no logits",
    "return_generation_logits": "there are log-probabilities (return_log_probs), but no logits",
    "use_draft_logits": "drafts are the server's own",
}
# The name, the most that asks for nothing, and why no more is possible.
_COUNTS = (
    ("beam_width", 1, "there is no beam search"),
    ("num_draft_tokens", 0, "drafts are the server's own"),
)


def check_unsupported(inputs: Inputs) -> None:
    """Raises RequestError for a tensor that asks for what cannot be done, with its value."""
    for name, reason in _TEXTS.items():
        _require(not inputs.texts(name), name, list(inputs.texts(name)), f"empty ({reason})")
    for name, reason in _FLAGS.items():
        _require(not inputs.flag(name), name, True, f"false ({reason})")
    for name, most, reason in _COUNTS:
        value = inputs.integer(name, most)
        _require(value <= most, name, value, f"{most} ({reason})")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise RequestError(f"{name} must be {expected}, found {value!r:.200}")
