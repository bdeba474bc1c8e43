"""A device without a model: follows ScheduledSteps as an executor does, checks each against the contract, and answers.

Tokens are a fixed function of (seed, place in the output), so the right output of a request is known beforehand; how
many drafts are accepted is random, and how many there are where no step drafts them. What the host only bounds -
lengths, the pages written - is kept here exactly. A page holds a mark of its last write, so that a page that was lost,
mixed up or not copied is seen when it is read.
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from dataclasses import dataclass, field

from sparsespec.plugins.phase import Phase
from sparsespec.runtime.kv_cache import KvCacheManager
from sparsespec.runtime.request import FinishReason, Request, RequestSpec
from sparsespec.runtime.results import SlotResult, TokenLogprobs
from sparsespec.runtime.scheduled_step import Admission, PageGrant, PageMove, ScheduledRows, ScheduledStep
from sparsespec.runtime.scheduler import Scheduler

NUM_TOKENS = 40  # vocabulary of the answers


class ContractError(Exception):
    """A scheduled step that a device could not have run."""


def answer_token(seed: int, index: int) -> int:
    """Token `index` of the only right answer."""
    return zlib.crc32(f"{seed}/{index}".encode()) % NUM_TOKENS


def right_answer(spec: RequestSpec) -> tuple[list[int], FinishReason]:
    """What a request must produce, however it is scheduled."""
    tokens: list[int] = []
    while len(tokens) < spec.max_tokens:
        tokens.append(answer_token(spec.seed, len(tokens)))
        if tokens[-1] in spec.stop_token_ids:
            return tokens, "stop"
    return tokens, "length"


@dataclass(frozen=True)
class _Mark:
    """The last write of a page."""

    request_id: int
    index: int  # of the page in its request
    step: int


@dataclass
class _Slot:
    spec: RequestSpec
    pages: list[int] = field(default_factory=list)
    marks: dict[int, _Mark] = field(default_factory=dict)  # of its last writes, by place in the request
    host_pages: tuple[int, ...] | None = None  # while it is away
    generation: int | None = None  # unknown until the first rows
    kv_len: int = 0
    drafted: int = 0
    scored: bool = False  # whether the last block chose pillars

    @property
    def prompt_len(self) -> int:
        return len(self.spec.prompt_token_ids)


@dataclass(frozen=True)
class _Drafts:
    num_drafts: int
    num_accepted: int


@dataclass(frozen=True)
class Trace:
    """One slot's part in a step, as it ran."""

    step: int
    rows: ScheduledRows
    num_output: int  # output tokens on the device after it


@dataclass(frozen=True)
class _Write:
    request_id: int
    index: int  # of the page in its request
    page: int


class FakeDevice:
    """Runs steps in order; every breach raises ContractError."""

    def __init__(self, kv_cache: KvCacheManager, acceptance: float, seed: int) -> None:
        """acceptance: chance of each draft."""
        self.steps: list[ScheduledStep] = []
        self.admitted: list[int] = []  # request ids, in order
        self.traces: dict[int, list[Trace]] = {}  # by request id
        self._kv_cache = kv_cache  # only asked how much a request holds
        self.acceptance = acceptance  # chance of each draft
        self._random = random.Random(seed)
        self._slots: dict[int, _Slot] = {}
        self._last_generation: dict[int, int] = {}  # by slot
        self._owner: dict[int, tuple[int, int]] = {}  # request and place in it, of every page granted so far
        self._written: dict[int, list[_Write]] = {}  # by step in flight
        self._moves: dict[int, ScheduledStep] = {}  # by step in flight
        self._marks: dict[int, _Mark] = {}  # by page
        self._host_marks: dict[int, _Mark | None] = {}  # by host page; None for a page that was granted, not written
        self.offloaded: list[int] = []  # request ids, in order
        self.restored: list[int] = []

    @property
    def kv_lens(self) -> list[int]:
        """Verified tokens of every slot that was ever taken."""
        return [slot.kv_len for slot in self._slots.values()]

    def run(self, step: ScheduledStep) -> dict[int, SlotResult]:
        """Execute a step right after it was scheduled; returns the results, which the host may read later."""
        _check(step.index == len(self.steps), f"step {step.index} after {len(self.steps)} steps")
        slots = [rows.slot for rows in step.rows]
        _check(slots == sorted(dict.fromkeys(slots)), f"rows are not in slot order: {slots}")
        self.steps.append(step)
        for admission in step.admissions:
            self._admit(admission)
        for move in step.offloads:
            self._offload(move)
        for move in step.restores:
            self._restore(move)
        self._moves[step.index] = step
        for grant in step.page_grants:
            self._grant(grant)
        self._written[step.index] = []
        results = [(rows.slot, self._execute(step.index, rows)) for rows in step.rows]
        return {slot: result for slot, result in results if result is not None}

    def retire(self, step: int) -> None:
        """The host has read the results of a step."""
        self._written.pop(step)
        self._moves.pop(step)

    def check_held(self, running: list[int]) -> None:
        """No running request has lost a page that a step in flight writes."""
        for write in (write for writes in self._written.values() for write in writes):
            if write.request_id in running:
                held = self._kv_cache.num_pages_of(write.request_id)
                _check(write.index < held, f"page {write.page} was taken back while a step in flight writes it")

    def _admit(self, admission: Admission) -> None:
        before = self._slots.get(admission.slot)
        if before is not None and before.generation is not None:
            self._last_generation[admission.slot] = before.generation
        self._slots[admission.slot] = _Slot(admission.spec)
        self.admitted.append(admission.spec.request_id)
        self.traces[admission.spec.request_id] = []

    def _offload(self, move: PageMove) -> None:
        slot = self._slots[move.slot]
        _check(slot.host_pages is None, f"slot {move.slot} is away already")
        held, writes = self._kv_cache.num_host_pages_of(slot.spec.request_id), self._pages_written()
        _check(len(move.pages) == len(move.host_pages) == held, f"{len(move.pages)} of {held} pages leave")
        _check(list(move.pages) == slot.pages[:held], "other pages leave than the request's")
        reading = [page for step in self._moves.values() for each in step.restores for page in each.host_pages]
        for page, host_page in zip(move.pages, move.host_pages, strict=True):
            _check(page not in writes, f"page {page} leaves while a step in flight writes it")
            _check(host_page not in reading, f"host page {host_page} is overwritten while a copy in flight reads it")
            self._host_marks[host_page] = self._marks.get(page)
        slot.host_pages, slot.pages = move.host_pages, []
        self.offloaded.append(slot.spec.request_id)

    def _restore(self, move: PageMove) -> None:
        slot = self._slots[move.slot]
        _check(slot.host_pages == move.host_pages, f"slot {move.slot} left for {slot.host_pages}")
        slot.host_pages = None
        self._grant(PageGrant(move.slot, 0, move.pages))
        for page, host_page in zip(move.pages, move.host_pages, strict=True):
            self._mark(page, self._host_marks.pop(host_page))
        self.restored.append(slot.spec.request_id)

    def _grant(self, grant: PageGrant) -> None:
        slot = self._slots[grant.slot]
        _check(grant.first <= len(slot.pages), f"a gap before page {grant.first} of slot {grant.slot}")
        busy, leaving = self._pages_written(), self._pages_leaving()
        for index, page in enumerate(grant.pages, start=grant.first):
            _check(page not in busy, f"page {page} is granted while a step in flight writes it")
            _check(page not in leaving, f"page {page} is granted while a copy in flight reads it")
            self._owner[page] = (slot.spec.request_id, index)
            self._mark(page, None)
        slot.pages[grant.first :] = grant.pages

    def _mark(self, page: int, mark: _Mark | None) -> None:
        self._marks.pop(page, None)
        if mark is not None:
            self._marks[page] = mark

    def _pages_written(self) -> list[int]:
        """By steps in flight."""
        return [write.page for writes in self._written.values() for write in writes]

    def _pages_leaving(self) -> list[int]:
        """By copies of steps in flight."""
        return [page for step in self._moves.values() for move in step.offloads for page in move.pages]

    def _execute(self, step: int, rows: ScheduledRows) -> SlotResult | None:
        slot = self._slots[rows.slot]
        _check(slot.host_pages is None, f"rows of slot {rows.slot}, whose pages are away")
        self._check_generation(rows, slot)
        checks = {Phase.PREFILL: _check_prefill, Phase.DRAFT: _check_draft, Phase.VERIFY: _check_verify}
        checks[rows.phase](rows, slot)
        first = slot.kv_len + rows.draft_index
        self._write(step, slot, range(first, first + rows.num_rows))
        self._read(slot, first + rows.num_rows)
        result = self._advance(rows, slot)
        if rows.block_rows:
            slot.scored = rows.scored
        num_output = max(0, slot.kv_len - slot.prompt_len + 1)
        self.traces[slot.spec.request_id].append(Trace(step, rows, num_output))
        return result

    def _check_generation(self, rows: ScheduledRows, slot: _Slot) -> None:
        if slot.generation is None:
            _check(rows.generation != self._last_generation.get(rows.slot), "a new request keeps the old generation")
            slot.generation = rows.generation
        _check(rows.generation == slot.generation, "the generation changed under a request")

    def _write(self, step: int, slot: _Slot, positions: range) -> None:
        held = self._kv_cache.num_pages_of(slot.spec.request_id)
        for index in dict.fromkeys(position // self._kv_cache.page_size for position in positions):
            _check(index < min(held, len(slot.pages)), f"write past the {held} pages of {slot.spec.request_id}")
            page = slot.pages[index]
            owner = self._owner[page]
            _check(owner == (slot.spec.request_id, index), f"page {page} belongs to {owner} by now")
            self._written[step].append(_Write(slot.spec.request_id, index, page))
            slot.marks[index] = _Mark(slot.spec.request_id, index, step)
            self._mark(page, slot.marks[index])

    def _read(self, slot: _Slot, num_tokens: int) -> None:
        for index in range(self._kv_cache.pages_for(num_tokens)):
            found, expected = self._marks.get(slot.pages[index]), slot.marks[index]
            _check(found == expected, f"page {slot.pages[index]} holds {found}, not {expected}")

    def _advance(self, rows: ScheduledRows, slot: _Slot) -> SlotResult | None:
        if rows.phase == Phase.DRAFT:
            slot.drafted += 1
            return None
        if rows.phase == Phase.PREFILL:
            slot.kv_len += rows.num_rows
            if slot.kv_len < slot.prompt_len:
                return None
            return self._result(rows, slot, _Drafts(0, 0), first=0)
        drafts = self._drafts(slot, rows.num_rows - 1)
        first = slot.kv_len - slot.prompt_len + 1
        slot.kv_len = min(slot.kv_len + drafts.num_accepted + 1, slot.prompt_len + slot.spec.max_tokens - 1)
        slot.drafted = 0
        return self._result(rows, slot, drafts, first)

    def _drafts(self, slot: _Slot, room: int) -> _Drafts:
        """What a verification finds: as many drafts as were drafted, or any number where they need no steps."""
        found, accepted = slot.drafted, 0
        if slot.spec.num_draft_steps == 0:
            found = self._random.randint(0, room)
        while accepted < found and self._random.random() < self._chance(slot.spec):
            accepted += 1
        return _Drafts(found, accepted)

    def _chance(self, spec: RequestSpec) -> float:
        """That a draft of this request is accepted."""
        return self.acceptance

    def _result(self, rows: ScheduledRows, slot: _Slot, drafts: _Drafts, first: int) -> SlotResult:
        end = slot.kv_len - slot.prompt_len + 1
        tokens = tuple(answer_token(slot.spec.seed, index) for index in range(first, end))
        logprobs = tuple(TokenLogprobs(token, -1.0, ()) for token in tokens) if rows.needs.logprobs is not None else ()
        return SlotResult(
            phase=rows.phase,
            tokens=tokens,
            num_drafts=drafts.num_drafts,
            num_accepted=drafts.num_accepted,
            kv_len=slot.kv_len,
            recent_start=slot.kv_len // 2,
            num_chosen=slot.kv_len // 4,
            logprobs=logprobs,
        )


@dataclass(frozen=True)
class Arrival:
    """A request, the step before which it comes, and the one before which its caller leaves, if that is so."""

    spec: RequestSpec
    step: int = 0
    cancel_step: int | None = None


class FakeHost:
    """The loop of runtime.llm: schedules, and reads results `lag` steps late."""

    def __init__(self, scheduler: Scheduler, device: FakeDevice, lag: int) -> None:
        self.requests: dict[int, Request] = {}
        self.device = device
        self.scheduler = scheduler
        self._lag = lag
        self._in_flight: deque[tuple[ScheduledStep, dict[int, SlotResult]]] = deque()

    def serve(self, arrivals: list[Arrival], max_steps: int) -> None:
        """Run until every request has ended; ContractError after max_steps."""
        coming = deque(sorted(arrivals, key=lambda arrival: arrival.step))
        while coming or self.scheduler.has_requests:
            while coming and coming[0].step <= self.scheduler.next_step:
                spec = coming.popleft().spec
                self.requests[spec.request_id] = self.scheduler.add(spec)
            self._cancel([arrival for arrival in arrivals if arrival.cancel_step == self.scheduler.next_step])
            _check(self.scheduler.next_step < max_steps, f"not done after {max_steps} steps")
            self.step()

    def step(self) -> ScheduledStep:
        """Schedule and run one step, and read what is due."""
        step = self.scheduler.schedule()
        self.scheduler.kv_cache.check_integrity()
        self._in_flight.append((step, self.device.run(step)))
        self._update()
        return step

    def _cancel(self, leaving: list[Arrival]) -> None:
        for arrival in leaving:
            request = self.requests.get(arrival.spec.request_id)
            if request is not None and request.finish_reason is None:
                self.scheduler.cancel(request)
        self._update()

    def _update(self) -> None:
        while len(self._in_flight) > (self._lag if self.scheduler.has_requests else 0):
            step, results = self._in_flight.popleft()
            self.scheduler.update(step, results)
            self.device.retire(step.index)
            self.scheduler.kv_cache.check_integrity()
            started = [i for i in self.device.admitted if self.requests[i].finish_reason is None]
            self.device.check_held(started)


def _check_prefill(rows: ScheduledRows, slot: _Slot) -> None:
    end = slot.kv_len + rows.num_rows
    _check(rows.num_rows >= 1 and end <= slot.prompt_len, f"chunk to {end} of {slot.prompt_len}")
    last = end == slot.prompt_len
    block = min(slot.spec.draft_len + 1, slot.prompt_len) if last else 0
    _check(rows.num_rows >= block, f"a last chunk of {rows.num_rows} rows splits the block of {block}")
    _check((rows.num_logits, rows.block_rows) == (int(last), block), "wrong logits or block of a chunk")
    _check(not rows.scored or (last and slot.spec.draft_len > 0), "wrong chunk is scored")


def _check_draft(rows: ScheduledRows, slot: _Slot) -> None:
    _check(slot.kv_len >= slot.prompt_len, "draft before the prompt is in")
    _check(slot.drafted < slot.spec.num_draft_steps, "more draft steps than there may be")
    _check(slot.scored, "drafts with the pillars of an earlier block")
    _check((rows.num_rows, rows.num_logits, rows.draft_index) == (1, 1, slot.drafted), "wrong draft row")
    _check((rows.block_rows, rows.scored) == (0, False), "a draft row is no block")


def _check_verify(rows: ScheduledRows, slot: _Slot) -> None:
    size = slot.drafted + 1 if slot.spec.num_draft_steps else rows.num_rows
    _check(slot.kv_len >= slot.prompt_len, "verification before the prompt is in")
    _check(1 <= size <= slot.spec.draft_len + 1, f"{size} rows of a verification")
    _check((rows.num_rows, rows.num_logits, rows.block_rows) == (size, size, size), "wrong rows of a verification")
    _check((size > 1) == slot.scored, "a block is scored if drafts follow, and only then")
    _check(not rows.scored or slot.spec.draft_len > 0, "a plain request is scored")
    _check(rows.draft_index == 0, "a verification starts at its block")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)
