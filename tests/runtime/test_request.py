"""Counters of one request: what it does next, what a result changes, and what a verification read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespec.plugins.phase import Phase
from sparsespec.runtime.request import Request, RequestSpec
from sparsespec.runtime.results import SlotResult, TokenLogprobs
from sparsespec.runtime.sampling_params import SamplingParams


def make_request(
    prompt: int = 6,
    max_tokens: int = 10,
    draft_len: int = 3,
    params: SamplingParams = SamplingParams(),
    stop_token_ids: tuple[int, ...] = (),
) -> Request:
    return Request(RequestSpec(0, tuple(range(1, prompt + 1)), params, 0, stop_token_ids, max_tokens, draft_len))


def started(request: Request) -> Request:
    """The request with its prompt in and its first token, 50, read."""
    request.schedule_prefill(len(request.spec.prompt_token_ids))
    request.receive(result(Phase.PREFILL, (50,), kv_len=len(request.spec.prompt_token_ids)))
    return request


def result(
    phase: Phase, tokens: tuple[int, ...], kv_len: int, recent_start: int = 0, num_pillars: int = 0, top: int = 0
) -> SlotResult:
    ranked = tuple((token, -float(token)) for token in range(top))
    logprobs = tuple(TokenLogprobs(token, -0.5, ranked) for token in tokens) if top else ()
    return SlotResult(phase, tokens, max(0, len(tokens) - 1), kv_len, recent_start, num_pillars, logprobs)


def run_cycle(request: Request, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Draft and verify once, reading every result at once."""
    for _ in range(request.spec.draft_len):
        request.schedule_draft()
        request.receive_nothing()
    request.schedule_verify()
    return request.receive(result(Phase.VERIFY, tokens, request.kv_len + len(tokens)))


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 200), st.integers(0, 16), st.lists(st.integers(0, 80), min_size=1, max_size=30))
def test_chunks_cover_the_prompt_and_keep_its_scored_end_together(
    prompt: int, draft_len: int, rooms: list[int]
) -> None:
    request = make_request(prompt=prompt, draft_len=draft_len)
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
    request = make_request(prompt=4, max_tokens=3, draft_len=2)
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


def test_the_length_bound_follows_results_and_stops_at_the_end() -> None:
    request = make_request(prompt=6, max_tokens=10, draft_len=3)
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
    request = started(make_request(max_tokens=3, draft_len=1))
    for _ in range(2):
        request.schedule_draft()
        request.schedule_verify()
    request.receive_nothing()
    request.receive(result(Phase.VERIFY, (51, 52), kv_len=8))
    request.receive_nothing()
    assert request.receive(result(Phase.VERIFY, (), kv_len=8)) == ()
    assert [check.num_tokens for check in request.verifications] == [2]
    assert request.output_token_ids == [50, 51, 52]


def test_a_verification_counts_every_token_read() -> None:
    """Positions are listed one by one: pillars and recent ones for drafts, everything for verification and plain."""
    request = make_request(prompt=40, max_tokens=20, draft_len=3)
    request.schedule_prefill(40)
    request.receive(result(Phase.PREFILL, (50,), kv_len=40, recent_start=31, num_pillars=5))
    run_cycle(request, (51, 52))
    drafts = [[*range(5), *range(31, 40 + index + 1)] for index in range(3)]
    plain = [list(range(position + 1)) for position in (40, 41)]
    (check,) = request.verifications
    assert check.draft_kv_tokens == sum(len(positions) for positions in drafts)
    assert check.verify_kv_tokens == len(range(40 + 4))
    assert check.plain_kv_tokens == sum(len(positions) for positions in plain)
    assert (check.first_output, check.num_tokens, check.num_drafts, check.num_accepted) == (1, 2, 3, 1)


def test_a_verification_counts_with_the_selection_that_its_drafts_used() -> None:
    """A result that arrives while later drafts run changes the counts of the block after it, not its own."""
    request = started(make_request(prompt=20, draft_len=1))
    reads = []
    for recent_start, num_pillars in ((18, 7), (0, 0)):
        run_cycle_with(request, recent_start, num_pillars)
        reads.append(request.verifications[-1].draft_kv_tokens)
    assert reads == [20 + 1, 7 + (21 + 1 - 18)]


def run_cycle_with(request: Request, recent_start: int, num_pillars: int) -> None:
    request.schedule_draft()
    request.receive_nothing()
    request.schedule_verify()
    request.receive(result(Phase.VERIFY, (51,), request.kv_len + 1, recent_start, num_pillars))


def test_logprobs_keep_as_many_alternatives_as_asked_for() -> None:
    """The device reports the most that anyone may ask for."""
    request = make_request(params=SamplingParams(logprobs=2))
    request.schedule_prefill(6)
    request.receive(result(Phase.PREFILL, (50,), kv_len=6, top=20))
    assert [logprob.token_id for logprob in request.logprobs] == [50]
    assert request.logprobs[0].top == ((0, -0.0), (1, -1.0))


def test_logprobs_end_where_the_output_ends() -> None:
    params = SamplingParams(logprobs=0)
    request = make_request(params=params, max_tokens=4, stop_token_ids=(52,))
    request.schedule_prefill(6)
    request.receive(result(Phase.PREFILL, (50, 51, 52, 53), kv_len=6, top=1))
    assert [logprob.token_id for logprob in request.logprobs] == request.output_token_ids == [50, 51, 52]
    request.truncate_output(1)
    assert [logprob.token_id for logprob in request.logprobs] == request.output_token_ids == [50]


def test_no_logprobs_unless_asked_for() -> None:
    request = make_request()
    request.schedule_prefill(6)
    request.receive(result(Phase.PREFILL, (50,), kv_len=6, top=3))
    assert request.logprobs == []


def test_verifications_count_the_tokens_that_a_stop_text_leaves() -> None:
    request = started(make_request())
    run_cycle(request, (51, 52, 53))
    request.truncate_output(2)
    assert 1 + sum(check.num_tokens for check in request.verifications) == len(request.output_token_ids)
