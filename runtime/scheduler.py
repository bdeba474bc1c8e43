"""Who does what in the next step. No torch.

Unified policy (SparseSpec, arXiv 2512.01278, section 4.2): each request repeats k drafts and one verification, and the
cycles are staggered so that every step verifies an even share of the batch. A request waits at most k steps, once, for
its place in the stagger; a shortened first cycle would not wait, but would make sampled output depend on the batch.
Requests without draft steps, plain ones and those whose drafts are found without the model, verify in every step.
How many drafts a cycle has is up to `Cycles`: always k unless the engine is told to adapt it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from sparsespec.plugins.phase import DRAFT, IDLE, PREFILL, VERIFY
from sparsespec.runtime.cycles import LOOK_AGAIN, NO_CYCLES, Cycles, Load
from sparsespec.runtime.kv_cache import KvCacheManager
from sparsespec.runtime.offload import Offloading
from sparsespec.runtime.request import Request, RequestSpec
from sparsespec.runtime.results import SlotResult
from sparsespec.runtime.running import RunningRequest
from sparsespec.runtime.scheduled_step import Admission, PageGrant, ScheduledRows, ScheduledStep


@dataclass(frozen=True)
class SchedulerLimits:
    """Sizes of one step."""

    max_batch_size: int
    max_num_tokens: int  # rows
    chunk_size: int  # prefill rows


class Progress(NamedTuple):
    """Tokens that a request gained in a step."""

    request: Request
    tokens: tuple[int, ...]


class Scheduler:
    """In-flight batching: requests join and leave at any step."""

    def __init__(self, limits: SchedulerLimits, kv_cache: KvCacheManager, cycles: Cycles) -> None:
        self.limits = limits
        self.kv_cache = kv_cache
        self.next_step = 0
        self._cycles = cycles
        self._offloading = Offloading(kv_cache)
        self._waiting: list[Request] = []  # in the order in which they are let in
        self._running: dict[int, RunningRequest] = {}  # by slot, in their order
        self._prefilling: list[RunningRequest] = []  # those of them whose prompts are not in yet, in order of admission
        self._free_slots = list(range(limits.max_batch_size))
        self._generations = [0] * limits.max_batch_size
        self._page_grants: list[PageGrant] = []  # of the step being scheduled

    @property
    def has_requests(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._waiting or self._running)

    @property
    def num_running(self) -> int:
        """Requests in slots."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    def request_in(self, slot: int) -> Request:
        """Whoever runs there."""
        return self._running[slot].request

    @property
    def num_kv_tokens(self) -> int:
        """Verified tokens of running requests, as of the last results read."""
        return sum(running.request.kv_len for running in self._running.values())

    def load(self) -> Load:
        """What a step has to do; see LoadSource."""
        requests = [running.request for running in self._running.values()]
        context = sum(max(request.kv_len, request.num_prefilled) for request in requests) / max(1, len(requests))
        kv_share = 1 - self.kv_cache.num_free_pages / self.kv_cache.num_pages
        missing = sum(len(each.request.spec.prompt_token_ids) - each.request.num_prefilled for each in self._prefilling)
        return Load(len(requests), context, kv_share, min(self.limits.chunk_size, missing / LOOK_AGAIN))

    def add(self, spec: RequestSpec) -> Request:
        """Queue a request: the lowest priority number first, and of one priority first come, first served."""
        request = Request(spec)
        insort(self._waiting, request, key=lambda waiting: waiting.spec.priority)
        return request

    def cancel(self, request: Request) -> None:
        """End a request in any phase."""
        request.finish("cancelled")
        self._waiting = [waiting for waiting in self._waiting if waiting is not request]
        self._release_slot_of(request)

    def stop(self, request: Request, num_tokens: int, stop_text: str) -> None:
        """End a running request, or one that has just ended, at the stop text that num_tokens output tokens hold."""
        request.truncate_output(num_tokens)
        request.finish("stop", stop_text)
        self._release_slot_of(request)

    def schedule(self) -> ScheduledStep:
        """Decide the next step."""
        may_begin = self._cycles.begin_step(self.next_step, self)
        moves = self._offloading.move(self._running.values(), self.next_step)
        admissions = self._admit()
        self._rejoin()
        rows = self._decode_rows(may_begin)
        if self._prefilling:
            rows += self._prefill_rows(rows)
            rows.sort(key=attrgetter("slot"))
        step = ScheduledStep(
            index=self.next_step,
            admissions=tuple(admissions),
            page_grants=tuple(self._page_grants),
            rows=tuple(rows),
            budget=self._cycles.budget,
            offloads=moves.offloads,
            restores=moves.restores,
        )
        self._page_grants = []
        self.next_step += 1
        return step

    def update(self, step: ScheduledStep, results: Mapping[int, SlotResult]) -> list[Progress]:
        """Take the results of a finished step, by slot; returns who gained tokens. Steps come in order."""
        progress = []
        for row in step.landing:
            running = self._running.get(row.slot)
            if running is None or running.generation != row.generation:
                continue  # a late result: the slot has changed hands since
            result = results.get(row.slot)
            if result is None:
                running.request.receive_nothing()
                continue
            request = running.request
            progress.append(Progress(request, request.receive(result)))
            if request.finish_reason is not None:
                self._release(running)
            elif row.phase is VERIFY and len(result.tokens) < row.num_rows:  # it wrote less far than it might have
                self.kv_cache.truncate(request.request_id, request.write_bound)
        self.kv_cache.retire(step.index)
        return progress

    def _admit(self) -> list[Admission]:
        admissions = []
        while self._waiting and self._free_slots and self._may_admit(self._waiting[0]):
            request = self._waiting.pop(0)
            slot = self._free_slots.pop(0)
            self.kv_cache.allocate(request.request_id, request.spec.max_kv_len)
            self._running[slot] = RunningRequest(request, slot, self._generations[slot])
            self._prefilling.append(self._running[slot])
            self._offloading.admit(self._running[slot])
            admissions.append(Admission(slot, request.spec))
        if admissions:
            self._running = dict(sorted(self._running.items()))
        return admissions

    def _may_admit(self, request: Request) -> bool:
        fits = self.kv_cache.can_allocate(request.spec.max_kv_len)
        return fits and self._offloading.may_admit(request)

    def _rejoin(self) -> None:
        """Whoever is here again waits for its place in the stagger."""
        if not self._offloading.is_on:
            return  # nobody ever lacks a page
        for running in self._running.values():
            if running.present and running.out_of_step:
                running.out_of_step = False
                running.request.delay_start(0)
                if running.request.in_cycle:
                    delay = self._cycles.rejoin(running.request, self._present(), self.next_step)
                    running.request.delay_start(delay)

    def _present(self) -> list[Request]:
        return [each.request for each in self._running.values() if each.present]

    def _decode_rows(self, may_begin: bool) -> list[ScheduledRows]:
        rows = []
        for running in self._running.values():
            if not running.present:
                continue
            request = running.request
            phase = request.next_phase
            if phase is DRAFT:
                rows.append(running.draft_rows[request.draft_index])
                request.schedule_draft()
            elif phase is VERIFY and not self._grant_pages(running, request.num_drafts + 1):
                running.out_of_step = True
            elif phase is VERIFY and (request.num_drafts or (may_begin and running.may_draft)):
                rows.append(self._verify(running))
            elif phase is VERIFY:
                rows.append(running.verify_rows[0])
                request.schedule_verify()
            elif phase is IDLE:
                request.pass_step()
        return rows

    def _verify(self, running: RunningRequest) -> ScheduledRows:
        request = running.request
        num_drafts = self._cycles.next_drafts(request, self.next_step)
        rows = running.verify_rows[num_drafts > 0]
        request.schedule_verify()
        if num_drafts != request.num_drafts:
            running.change_drafts(num_drafts)
        return rows

    def _prefill_rows(self, decode_rows: list[ScheduledRows]) -> list[ScheduledRows]:
        if self._cycles.policy == "lockstep" and any(row.phase is DRAFT for row in decode_rows):
            return []  # a step of drafts alone runs on the draft engine
        room = min(self.limits.chunk_size, self.limits.max_num_tokens - sum(row.num_rows for row in decode_rows))
        rows = []
        for running in [each for each in self._prefilling if each.present]:
            chunk = running.request.next_chunk(room)
            if chunk == 0 or not self._grant_pages(running, chunk):
                break
            rows.append(self._prefill(running, chunk))
            room -= chunk
        self._prefilling = [each for each in self._prefilling if each.request.next_phase == PREFILL]
        return rows

    def _prefill(self, running: RunningRequest, num_rows: int) -> ScheduledRows:
        request = running.request
        request.schedule_prefill(num_rows)
        if request.num_prefilled < len(request.spec.prompt_token_ids):
            return running.chunk_rows(num_rows)
        first = self._cycles.first(request, self._present(), self.next_step) if running.may_draft else NO_CYCLES
        running.change_drafts(first.num_drafts)
        request.delay_start(first.delay)
        return running.last_chunk_rows(num_rows, scored=first.num_drafts > 0)

    def _grant_pages(self, running: RunningRequest, num_rows: int) -> bool:
        """Pages for a chunk or a verification, if there are any; a draft stays within its block's."""
        request_id, bound = running.request.request_id, running.request.bound_after(num_rows)
        if self.kv_cache.has_room(request_id, bound):
            return True
        if not self.kv_cache.can_append(request_id, bound):
            return False
        first = self.kv_cache.num_pages_of(request_id)
        pages = self.kv_cache.append(request_id, bound)
        self._page_grants.append(PageGrant(running.slot, first, pages))
        return True

    def _release_slot_of(self, request: Request) -> None:
        for running in [running for running in self._running.values() if running.request is request]:
            self._release(running)

    def _release(self, running: RunningRequest) -> None:
        self._running.pop(running.slot)
        self._prefilling = [each for each in self._prefilling if each is not running]
        self._offloading.release(running)
        self._generations[running.slot] += 1
        insort(self._free_slots, running.slot)
        self._cycles.end(running.request)
        self.kv_cache.free(running.request.request_id, last_step=self.next_step - 1)
