"""Which verifications fall into a repetitive stretch of an answer.

Small models repeat themselves, and a repetition is easy to draft. So acceptance is also told without it: a verification
is in a *repetitive stretch* when at least half of its new tokens end an n-gram (n = 8) that occurred earlier in the
same answer. The prompt does not count: quoting it is what long contexts are for.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsespec.runtime.outputs import CompletionOutput

NGRAM = 8


def ends_repeated_ngram(token_ids: Sequence[int], n: int = NGRAM) -> list[bool]:
    """Per token, whether the n tokens that end with it occurred before, overlapping or not."""
    ends = range(n - 1, len(token_ids))
    ngrams = [tuple(token_ids[end + 1 - n : end + 1]) for end in ends]
    first_end: dict[tuple[int, ...], int] = {}
    repeated = [first_end.setdefault(ngram, end) < end for ngram, end in zip(ngrams, ends, strict=True)]
    return [False] * (len(token_ids) - len(repeated)) + repeated


def repetitive_verifications(answer: CompletionOutput) -> list[bool]:
    """Per verification of an answer, whether it is in a repetitive stretch."""
    repeated = ends_repeated_ngram(answer.token_ids)
    blocks = [repeated[block.first_output : block.first_output + block.num_tokens] for block in answer.verifications]
    return [2 * sum(block) >= len(block) for block in blocks]
