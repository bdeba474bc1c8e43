"""Counters of one request: what it does next, what a result changes, and what a verification read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespec.plugins.phase import Phase
from sparsespec.runtime.request import DraftShape, Request, RequestSpec
from sparsespec.runtime.results import SlotResult, TokenLogprobs
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.verification import Verification

THREE_STEPS = DraftShape(draft_len=3, num_draft_steps=3)


def make_request(
    prompt: int = 6,
    max_tokens: int = 10,
    drafts: DraftShape = THREE_STEPS,
    params: SamplingParams = SamplingParams(),
    stop_token_ids: tuple[int, ...] = (),
) -> Request:
    return Request(RequestSpec(0, tuple(range(1, prompt + 1)), params, 0, stop_token_ids, max_tokens, drafts))


def started(request: Request) -> Request:
    """The request with its prompt in and its first token, 50, read."""
    request.schedule_prefill(len(request.spec.prompt_token_ids))
    request.receive(result(Phase.PREFILL, (50,), kv_len=len(request.spec.prompt_token_ids)))
    return request


def result(
    phase: Phase, tokens: tuple[int, ...], kv_len: int, recent_start: int = 0, num_chosen: int = 0, top: int = 0
) -> SlotResult:
    """Three drafts were verified, and all that the new tokens hold were accepted."""
    ranked = tuple((token, -float(token)) for token in range(top))
    logprobs = tuple(TokenLogprobs(token, -0.5, ranked) for token in tokens) if top else ()
    return SlotResult(phase, tokens, 3, max(0, len(tokens) - 1), kv_len, recent_start, num_chosen, logprobs)


def test_bounds_say_how_far_rows_may_write() -> None:
    """A block of 4 rows from wherever the last one may end, and no further than the end and a block."""
    request = make_request(prompt=6, max_tokens=10)
    assert (request.write_bound, request.bound_after(2), request.decode_bound) == (4, 6, 10)
    request.schedule_prefill(6)
    assert (request.write_bound, request.decode_bound) == (10, 14)
    request.receive(result(Phase.PREFILL, (50,), kv_len=6))
    run_cycle(request, (51, 52, 53, 54))
    request.schedule_verify()
    assert (request.write_bound, request.decode_bound) == (18, 19)


def run_cycle(request: Request, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Draft and verify once, reading every result at once."""
    for _ in range(request.spec.num_draft_steps):
        request.schedule_draft()
    request.schedule_verify()
    return request.receive(result(Phase.VERIFY, tokens, request.kv_len + len(tokens)))


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 200), st.integers(0, 16), st.lists(st.integers(0, 80), min_size=1, max_size=30))
def test_chunks_cover_the_prompt_and_keep_its_scored_end_together(
    prompt: int, draft_len: int, rooms: list[int]
) -> None:
    request = make_request(prompt=prompt, drafts=DraftShape(draft_len, 0))
    end = min(draft_len + 1, prompt)
    chunks = []
    for room in [*rooms, *(end for _ in range(prompt))]:
        if request.next_phase != Phase.PREFILL:
            break
        chunk = request.next_chunk(room)
        assert 0 <= chunk <= room
        if room >= end:
            assert chunk > 0
        if chunk:
            chunks.append(chunk)
            request.schedule_prefill(chunk)
    assert sum(chunks) == prompt
    assert chunks[-1] >= end


def test_phases_follow_from_what_was_scheduled_not_from_results() -> None:
    request = make_request(prompt=4, max_tokens=3, drafts=DraftShape(2, 2))
    phases = [request.next_phase]
    request.schedule_prefill(4)
    request.delay_start(2)
    for _ in range(2):
        phases.append(request.next_phase)
        request.pass_step()
    for _ in range(2):
        for schedule in (request.schedule_draft, request.schedule_draft, request.schedule_verify):
            phases.append(request.next_phase)
            schedule()
    phases.append(request.next_phase)
    cycle = [Phase.DRAFT, Phase.DRAFT, Phase.VERIFY]
    assert phases == [Phase.PREFILL, Phase.IDLE, Phase.IDLE, *cycle, *cycle, Phase.IDLE]


def test_without_draft_steps_every_step_verifies() -> None:
    request = make_request(prompt=1, max_tokens=4, drafts=DraftShape(3, 0))
    request.schedule_prefill(1)
    phases = []
    for step in range(5, 8):
        phases.append(request.next_phase)
        assert request.next_verify_step(step) == step
        request.schedule_verify()
    assert [*phases, request.next_phase] == [Phase.VERIFY] * 3 + [Phase.IDLE]


def test_a_verification_without_draft_steps_may_fill_all_its_rows() -> None:
    """The host does not know how many drafts there are: the bounds are those of all accepted."""
    request = started(make_request(prompt=6, max_tokens=20, drafts=DraftShape(3, 0)))
    request.schedule_verify()
    assert (request.kv_len_upper, request.write_bound) == (6 + 4, 6 + 4 + 4)


def test_the_length_bound_follows_results_and_stops_at_the_end() -> None:
    request = make_request(prompt=6, max_tokens=10)
    bounds = [request.kv_len_upper]
    request.schedule_prefill(6)
    bounds.append(request.kv_len_upper)
    for _ in range(2):
        request.schedule_verify()
        bounds.append(request.kv_len_upper)
    request.receive(result(Phase.PREFILL, (50,), kv_len=6))
    bounds.append(request.kv_len_upper)
    request.receive(result(Phase.VERIFY, (51,), kv_len=7))  # three drafts rejected
    bounds.append(request.kv_len_upper)
    request.schedule_verify()
    bounds.append(request.kv_len_upper)
    assert bounds == [0, 6, 10, 14, 14, 11, 15]
    request.schedule_verify()
    assert request.kv_len_upper == 15  # 6 + 10 - 1: the last token needs no place


def test_output_stops_at_max_tokens_within_a_block() -> None:
    request = started(make_request(max_tokens=3))
    assert run_cycle(request, (51, 52, 53, 54)) == (51, 52)
    assert (request.output_token_ids, request.finish_reason) == ([50, 51, 52], "length")


@pytest.mark.parametrize(("own", "stop_reason"), [((52,), 52), ((), None)])
def test_output_stops_at_the_first_stop_token(own: tuple[int, ...], stop_reason: int | None) -> None:
    """stop_reason names a token of the caller's own, and is None for end of sequence."""
    params = SamplingParams(stop_token_ids=own)
    request = started(make_request(params=params, stop_token_ids=(52, 53)))
    assert run_cycle(request, (51, 52, 53)) == (51, 52)
    assert (request.finish_reason, request.stop_reason) == ("stop", stop_reason)


def test_a_stop_token_at_max_tokens_is_a_stop() -> None:
    request = started(make_request(max_tokens=2, stop_token_ids=(51,)))
    run_cycle(request, (51,))
    assert request.finish_reason == "stop"


def test_the_first_token_may_be_the_last() -> None:
    assert started(make_request(max_tokens=1)).finish_reason == "length"
    assert started(make_request(stop_token_ids=(50,))).finish_reason == "stop"


def test_a_block_past_the_end_leaves_no_verification() -> None:
    request = started(make_request(max_tokens=3, drafts=DraftShape(1, 1)))
    for _ in range(2):
        request.schedule_draft()
        request.schedule_verify()
    request.receive(result(Phase.VERIFY, (51, 52), kv_len=8))
    assert request.receive(result(Phase.VERIFY, (), kv_len=8)) == ()
    assert [check.num_tokens for check in request.verifications] == [2]
    assert request.output_token_ids == [50, 51, 52]


def test_a_verification_counts_every_token_read() -> None:
    """Positions are listed one by one: pillars and recent ones for drafts, everything for verification and plain."""
    request = make_request(prompt=40, max_tokens=20)
    request.schedule_prefill(40)
    request.receive(result(Phase.PREFILL, (50,), kv_len=40, recent_start=31, num_chosen=5))
    run_cycle(request, (51, 52))
    drafts = [[*range(5), *range(31, 40 + index + 1)] for index in range(3)]
    plain = [list(range(position + 1)) for position in (40, 41)]
    (check,) = request.verifications
    assert check.draft_kv_tokens == sum(len(positions) for positions in drafts)
    assert check.verify_kv_tokens == len(range(40 + 4))
    assert check.plain_kv_tokens == sum(len(positions) for positions in plain)
    assert (check.first_output, check.num_tokens, check.num_drafts, check.num_accepted) == (1, 2, 3, 1)


@pytest.mark.parametrize(("num_drafts", "tokens"), [(0, (51,)), (1, (51,)), (2, (51, 52, 53)), (3, (51, 52, 53, 54))])
def test_drafts_that_need_no_steps_read_nothing_and_may_be_few(num_drafts: int, tokens: tuple[int, ...]) -> None:
    """Verification reads for all its rows, padded ones too."""
    request = make_request(prompt=40, max_tokens=20, drafts=DraftShape(3, 0))
    request.schedule_prefill(40)
    request.receive(result(Phase.PREFILL, (50,), kv_len=40, recent_start=31, num_chosen=5))
    request.schedule_verify()
    request.receive(result(Phase.VERIFY, tokens, 40 + len(tokens))._replace(num_drafts=num_drafts))
    (check,) = request.verifications
    assert (check.num_drafts, check.num_accepted, check.num_tokens) == (num_drafts, len(tokens) - 1, len(tokens))
    assert (check.draft_kv_tokens, check.verify_kv_tokens) == (0, 40 + 4)


@given(start=st.integers(1, 300), num_drafts=st.integers(0, 8), num_tokens=st.integers(1, 9), kept=st.integers(1, 12))
@settings(deadline=None, derandomize=True)
def test_a_shortened_block_counts_its_own_tokens(start: int, num_drafts: int, num_tokens: int, kept: int) -> None:
    reads = [start + index + 1 for index in range(num_tokens)]
    check = Verification(1, num_tokens, num_drafts, 0, 0, start + 9, context=start)
    assert check.plain_kv_tokens == sum(reads)
    shorter = check.shortened(kept)
    assert (shorter.num_tokens, shorter.plain_kv_tokens) == (len(reads[:kept]), sum(reads[:kept]))
    assert shorter.context == start


def test_a_verification_counts_with_the_selection_that_its_drafts_used() -> None:
    """A result that arrives while later drafts run changes the counts of the block after it, not its own."""
    request = started(make_request(prompt=20, drafts=DraftShape(1, 1)))
    reads = []
    for recent_start, num_chosen in ((18, 7), (0, 0)):
        run_cycle_with(request, recent_start, num_chosen)
        reads.append(request.verifications[-1].draft_kv_tokens)
    assert reads == [20 + 1, 7 + (21 + 1 - 18)]


def run_cycle_with(request: Request, recent_start: int, num_chosen: int) -> None:
    request.schedule_draft()
    request.schedule_verify()
    request.receive(result(Phase.VERIFY, (51,), request.kv_len + 1, recent_start, num_chosen))


def test_logprobs_end_where_the_output_ends() -> None:
    params = SamplingParams(logprobs=0)
    request = make_request(params=params, max_tokens=4, stop_token_ids=(52,))
    request.schedule_prefill(6)
    request.receive(result(Phase.PREFILL, (50, 51, 52, 53), kv_len=6, top=1))
    assert [logprob.token_id for logprob in request.logprobs] == request.output_token_ids == [50, 51, 52]
    request.truncate_output(1)
    assert [logprob.token_id for logprob in request.logprobs] == request.output_token_ids == [50]


def test_verifications_count_the_tokens_that_a_stop_text_leaves() -> None:
    request = started(make_request())
    run_cycle(request, (51, 52, 53))
    request.truncate_output(2)
    assert 1 + sum(check.num_tokens for check in request.verifications) == len(request.output_token_ids)
