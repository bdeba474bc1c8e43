"""What one verification of a block read, and what came of it. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Verification:
    """One verified block. KV counts are tokens read per layer and KV head."""

    first_output: int  # index in output_token_ids of the block's first token
    num_tokens: int  # tokens it added to the output
    num_drafts: int  # at most the cycle's: drafts found without the model may be fewer, or none
    num_accepted: int
    draft_kv_tokens: int  # read by the block's draft steps, at most: what is chosen twice is read once
    verify_kv_tokens: int  # read by its verification, which has rows for the cycle's drafts however many are found
    context: int  # verified tokens before the block

    @property
    def plain_kv_tokens(self) -> int:
        """What plain decoding reads for the same tokens: its first row context + 1, each later row one more."""
        return self.num_tokens * self.context + sum_up_to(self.num_tokens)

    @property
    def num_kept_drafts(self) -> int:
        """Accepted drafts that joined the output: the block's tokens begin with them."""
        return min(self.num_accepted, self.num_tokens)

    def shortened(self, num_tokens: int) -> Verification:
        """This block, of which at most num_tokens tokens joined the output."""
        return replace(self, num_tokens=min(num_tokens, self.num_tokens))


def sum_up_to(number: int) -> int:
    """1 + 2 + ... + number."""
    return number * (number + 1) // 2


def drafted(checks: Iterable[Verification], first_output: int, num_tokens: int) -> tuple[bool, ...]:
    """Of num_tokens output tokens from first_output on, whether each is an accepted draft; checks: those of them."""
    flags = [False] * num_tokens
    for check in checks:
        first = check.first_output - first_output
        last = min(first + check.num_kept_drafts, num_tokens)
        flags[first:last] = [True] * (last - first)
    return tuple(flags)
