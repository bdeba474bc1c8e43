"""Prompts of one length for an engine, from texts that every installation has."""

from __future__ import annotations

from acceptance_study.texts import collect_texts
from sparsespec.builder.errors import InputError
from sparsespec.runtime.loading import LoadedEngine

# More than a tokenizer makes of a token of these texts.
_CHARS_PER_TOKEN = 6


def text_prompts(engine: LoadedEngine, num_prompts: int, context: int) -> list[tuple[int, ...]]:
    """The first `context` tokens of num_prompts texts, spread over all sources. Raises InputError for too few texts."""
    texts = collect_texts(context * _CHARS_PER_TOKEN, num_prompts)
    encoded = [engine.codec.encode(text.content) for text in texts]
    long_enough = [tuple(token_ids[:context]) for token_ids in encoded if len(token_ids) >= context]
    if len(long_enough) < num_prompts:
        raise InputError(f"num_prompts: found {len(long_enough)} texts of {context} tokens")
    return [long_enough[index * len(long_enough) // num_prompts] for index in range(num_prompts)]
