"""Prompts: real text of every installation, or random tokens for models without weights."""

from __future__ import annotations

import torch

from acceptance_study.texts import collect_texts
from sparsespec.runtime.text import TextCodec

# No token of these texts has more characters on average.
_CHARS_PER_TOKEN = 5
_TEXTS_PER_SOURCE = 150


def real_prompts(codec: TextCodec, count: int, length: int) -> list[list[int]]:
    """`count` prompts of `length` tokens. Where there are fewer texts, one serves again, from a later token on."""
    wanted = 2 * length
    texts = collect_texts(wanted * _CHARS_PER_TOKEN, _TEXTS_PER_SOURCE)
    encoded = [tokens for tokens in (codec.encode(text.content)[:wanted] for text in texts) if len(tokens) == wanted]
    assert encoded, f"no text of {wanted} tokens"
    stride = max(1, length * len(encoded) // count)
    return [encoded[at % len(encoded)][(at // len(encoded)) * stride :][:length] for at in range(count)]


def random_prompts(vocab_size: int, count: int, length: int, seed: int = 1) -> list[list[int]]:
    """`count` prompts of `length` tokens, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    prompts: list[list[int]] = torch.randint(3, vocab_size, (count, length), generator=generator).tolist()
    return prompts
