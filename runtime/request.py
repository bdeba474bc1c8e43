"""One request's life on the host. No torch: the device holds the tokens, the host counts.

The host runs ahead of the results, so what it knows is a count of what it scheduled and a bound on what that can have
done. Every change of a request's state is a method of Request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import astuple, dataclass
from functools import cached_property
from operator import itemgetter
from typing import Literal

from sparsespec.plugins.phase import DRAFT, IDLE, PREFILL, VERIFY, Phase
from sparsespec.runtime.results import SlotResult, TokenLogprobs
from sparsespec.runtime.sampling_params import SamplingNeeds, SamplingParams
from sparsespec.runtime.verification import Verification, sum_up_to

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class DraftShape:
    """How a request's cycles are made, at most."""

    draft_len: int  # drafts per cycle: the rows of a verification less one; 0 for plain decoding
    num_draft_steps: int  # steps that draft them, one each: draft_len, or 0 where they are found without the model

    def __post_init__(self) -> None:
        assert self.num_draft_steps in (0, self.draft_len)


NO_DRAFTS = DraftShape(0, 0)


@dataclass(frozen=True)
class RequestSpec:
    """What a request asks for, checked and completed: everything that does not change while it runs."""

    request_id: int
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    stop_token_ids: tuple[int, ...]  # end-of-sequence tokens and the caller's own
    max_tokens: int  # as asked, within the engine's max_seq_len
    drafts: DraftShape
    priority: int = 0  # of those that wait, the lowest is let in first

    @cached_property
    def needs(self) -> SamplingNeeds:
        """What sampling has to compute for it."""
        return self.params.needs

    @property
    def draft_len(self) -> int:
        """Most drafts per cycle."""
        return self.drafts.draft_len

    @cached_property
    def num_draft_steps(self) -> int:
        """Most draft steps per cycle."""
        return self.drafts.num_draft_steps

    @property
    def end_len(self) -> int:
        """Verified tokens in the cache at which the device stops: the last new token needs no K and V."""
        return len(self.prompt_token_ids) + self.max_tokens - 1

    @property
    def max_kv_len(self) -> int:
        """Tokens the cache must have room for: a last block may be drafted and verified past end_len."""
        return self.end_len + self.draft_len + 1

    @property
    def prompt_block(self) -> int:
        """Rows at the prompt's end that are scored together, as a verification's rows are."""
        return min(self.draft_len + 1, len(self.prompt_token_ids))


@dataclass(frozen=True, slots=True)
class _InFlight:
    advance: int  # most tokens by which the step moves kv_len
    emits: int  # fewest tokens it adds to the output


class Request:
    """Counters of one request; its phase follows from them, and is kept as nearly every step asks for it."""

    def __init__(self, spec: RequestSpec) -> None:
        self.spec = spec
        self.request_id = spec.request_id  # number given at submission
        self.num_prefilled = 0  # prompt tokens scheduled
        self.start_delay = 0  # idle steps before the first cycle
        self.num_drafts = spec.draft_len  # of this cycle
        self.draft_index = 0  # draft steps scheduled in this cycle
        self.next_phase: Phase = PREFILL  # what the next step does for this request
        self.kv_len = 0  # verified tokens, as of the last result read
        self.recent_start = 0
        self.num_chosen = 0
        self.output_token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None  # the token or text that stopped it, None for end of sequence
        self._num_draft_steps = spec.num_draft_steps
        self._has_draft_steps = spec.num_draft_steps > 0
        self._block = _InFlight(advance=spec.draft_len + 1, emits=1)  # this cycle's verification
        self._most_rows = spec.draft_len + 1  # of any verification
        self._end_len = spec.end_len
        self._max_tokens = spec.max_tokens
        self._stop_token_ids = spec.stop_token_ids
        self._prompt_len = len(spec.prompt_token_ids)
        # Verifications as tuples of their numbers: there are very many, and a garbage collector passes these over.
        self._verified: list[tuple[int, ...]] = []
        # Prompt chunks and verifications: a draft moves no length and emits nothing, so nothing of it can land.
        self._in_flight: deque[_InFlight] = deque()
        self._advance_in_flight = 0  # sums over _in_flight
        self._emits_in_flight = 0

    @property
    def kv_len_upper(self) -> int:
        """Most verified tokens the device can hold once everything scheduled has run."""
        return min(self.kv_len + self._advance_in_flight, self._end_len)

    @property
    def scheduled_kv_len(self) -> int:
        """kv_len_upper as if the device did not stop at end_len."""
        return self.kv_len + self._advance_in_flight

    @property
    def write_bound(self) -> int:
        """No step in flight writes K and V at or past this position."""
        return self.bound_after(0)

    @property
    def decode_bound(self) -> int:
        """As write_bound, once its prompt is in and a verification is scheduled."""
        num_rows = self._block.advance
        if self.next_phase is PREFILL:
            num_rows = max(num_rows, self._prompt_len - self.num_prefilled)
        return self.bound_after(num_rows)

    @property
    def in_cycle(self) -> bool:
        """Whether it drafts and verifies in the coming steps, now or after its start delay."""
        return self.start_delay > 0 or self.next_phase is DRAFT or self.next_phase is VERIFY

    @property
    def num_certain_tokens(self) -> int:
        """Output tokens there will be at least, once everything scheduled has run."""
        return len(self.output_token_ids) + self._emits_in_flight

    @property
    def verifications(self) -> list[Verification]:
        """Every verified block that added to the output, in order."""
        return self.verifications_since(0)

    @property
    def num_verifications(self) -> int:
        """How many there are of them."""
        return len(self._verified)

    def verifications_since(self, count: int) -> list[Verification]:
        """Those after the first `count`."""
        return [Verification(*numbers) for numbers in self._verified[count:]]

    def verifications_within(self, first_output: int, end: int) -> list[Verification]:
        """The verified blocks whose first output tokens are in first_output..end - 1."""
        verified = self._verified
        first = bisect_left(verified, first_output, key=itemgetter(0))
        last = bisect_left(verified, end, lo=first, key=itemgetter(0))
        return [Verification(*numbers) for numbers in verified[first:last]]

    def bound_after(self, num_rows: int) -> int:
        """As write_bound, once a chunk or a verification of so many rows is scheduled."""
        return min(self.kv_len + self._advance_in_flight + num_rows, self._end_len) + self._most_rows

    def next_verify_step(self, next_step: int) -> int:
        """Step of the next verification if the request takes part in every step from next_step on."""
        return next_step + self.start_delay + self._num_draft_steps - self.draft_index

    def next_chunk(self, room: int) -> int:
        """Prompt tokens to prefill in a step with room for so many rows; the scored last rows stay together."""
        remaining = self._prompt_len - self.num_prefilled
        return remaining if remaining <= room else max(0, min(room, remaining - self.spec.prompt_block))

    def delay_start(self, steps: int) -> None:
        """Let so many steps pass before the first cycle."""
        self.start_delay = steps
        self._follow_counters()

    def change_drafts(self, num_drafts: int) -> None:
        """The cycle that begins has so many drafts, 0 to draft_len, and so have those after it."""
        assert self.draft_index == 0, "a cycle keeps its length"
        assert 0 <= num_drafts <= self.spec.draft_len, num_drafts
        self.num_drafts = num_drafts
        self._num_draft_steps = num_drafts if self._has_draft_steps else 0
        self._block = _InFlight(advance=num_drafts + 1, emits=1)
        self._follow_counters()

    def pass_step(self) -> None:
        """A step went by without this request."""
        self.start_delay = max(0, self.start_delay - 1)
        self._follow_counters()

    def schedule_prefill(self, num_rows: int) -> None:
        """num_rows prompt tokens are prefilled in the step being scheduled; the last chunk samples the first token."""
        self.num_prefilled += num_rows
        last = self.num_prefilled == self._prompt_len
        self._launch(_InFlight(advance=num_rows, emits=int(last)))

    def schedule_draft(self) -> None:
        """One token is drafted in the step being scheduled."""
        self.draft_index += 1
        if self.draft_index == self._num_draft_steps:
            self.next_phase = VERIFY

    def schedule_verify(self) -> None:
        """The cycle's drafts are verified in the step being scheduled."""
        self.draft_index = 0
        self._launch(self._block)

    def receive_nothing(self) -> None:
        """The oldest chunk in flight was not the prompt's last: it sampled nothing."""
        self.kv_len += self._land().advance

    def receive(self, result: SlotResult) -> tuple[int, ...]:
        """Take the result of the oldest chunk or verification in flight; returns the tokens that joined the output."""
        flight = self._land()
        first = len(self.output_token_ids)
        added = self._until_the_end(result.tokens)
        self.output_token_ids += added
        self.logprobs += result.logprobs[: len(added)]
        if added and result.phase is VERIFY:
            self._verified.append(self._verification(result, flight.advance, first, len(added)))
        self.kv_len, self.recent_start = result.kv_len, result.recent_start
        self.num_chosen = result.num_chosen
        if len(added) != flight.emits:  # or nothing that the phase follows from is another
            self._follow_counters()
        return added

    def truncate_output(self, num_tokens: int) -> None:
        """Keep the first num_tokens output tokens: a stop text ended there."""
        self.output_token_ids = self.output_token_ids[:num_tokens]
        self.logprobs = self.logprobs[:num_tokens]
        self._verified = [
            astuple(check.shortened(num_tokens - check.first_output))
            for check in self.verifications
            if check.first_output < num_tokens
        ]

    def finish(self, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """End the request; results still in flight are dropped by the scheduler."""
        self.finish_reason = reason
        self.stop_reason = stop_reason

    def _follow_counters(self) -> None:
        if self.num_prefilled < self._prompt_len:
            self.next_phase = PREFILL
        elif self.start_delay > 0 or len(self.output_token_ids) + self._emits_in_flight >= self._max_tokens:
            self.next_phase = IDLE
        else:
            self.next_phase = DRAFT if self.draft_index < self._num_draft_steps else VERIFY

    def _launch(self, flight: _InFlight) -> None:
        self._in_flight.append(flight)
        self._advance_in_flight += flight.advance
        self._emits_in_flight += flight.emits
        self._follow_counters()

    def _land(self) -> _InFlight:
        flight = self._in_flight.popleft()
        self._advance_in_flight -= flight.advance
        self._emits_in_flight -= flight.emits
        return flight

    def _until_the_end(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Those of new tokens that the output takes; ends the request where one of them does."""
        room = self._max_tokens - len(self.output_token_ids)
        kept = tokens[:room]
        for token in self._stop_token_ids:
            if token in kept:
                return self._until_a_stop(kept)
        if tokens and len(tokens) >= room:
            self.finish("length")
        return kept

    def _until_a_stop(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Of tokens among which one stops the output, those up to the first that does."""
        place = min(tokens.index(token) for token in self._stop_token_ids if token in tokens)
        self.finish("stop", tokens[place] if tokens[place] in self.spec.params.stop_token_ids else None)
        return tokens[: place + 1]

    def _verification(self, result: SlotResult, num_rows: int, first_output: int, num_tokens: int) -> tuple[int, ...]:
        """The numbers of a Verification, in their order.

        num_rows: of the block, whose cycle may have had more drafts or fewer than the one at work.
        """
        start, num_drafts, num_accepted = self.kv_len, result.num_drafts, result.num_accepted
        draft_steps = num_rows - 1 if self._has_draft_steps else 0
        draft_kv_tokens = draft_steps * (self.num_chosen + start - self.recent_start) + sum_up_to(draft_steps)
        return first_output, num_tokens, num_drafts, num_accepted, draft_kv_tokens, start + num_rows, start
