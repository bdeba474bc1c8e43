"""Whose KV pages go to host memory when they run short, and who comes back. No torch.

SparseSpec's dynamic KV-cache management (arXiv 2512.01278): whole requests move, nothing is recomputed. A request whose
worst case is reserved on the device stays. Of the others, guests, those admitted last leave first, each after the steps
in flight that can write its pages; and whoever left first comes first, before anybody is admitted. A guest's worst case
is reserved in host memory, so it can always leave, and alone it always fits: somebody can always go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from sparsespec.runtime.kv_cache import KvCacheManager, MovedPages
from sparsespec.runtime.request import Request
from sparsespec.runtime.running import RunningRequest
from sparsespec.runtime.scheduled_step import PageMove

# Beyond what its next block writes: pages take some steps to come free, and nobody should have to wait for them.
_MARGIN_PAGES = 1


@dataclass(frozen=True)
class PageMoves:
    """Of one step."""

    offloads: tuple[PageMove, ...] = ()
    restores: tuple[PageMove, ...] = ()


@dataclass(frozen=True)
class _Moving:
    running: RunningRequest
    last_step: int  # that touches the pages it holds


class Offloading:
    """Moves whole requests between the device's pages and the host's."""

    def __init__(self, kv_cache: KvCacheManager) -> None:
        self._kv_cache = kv_cache
        self._guests: list[RunningRequest] = []  # in order of admission
        self._leaving: list[_Moving] = []
        self._away: deque[RunningRequest] = deque()
        self._returning: list[_Moving] = []
        # Free pages beyond those that everybody here or on the way back may ask for soon, in the step being scheduled.
        self._num_spare = 0

    @property
    def is_on(self) -> bool:
        """Whether there is host memory; without it nobody is a guest."""
        return self._kv_cache.num_host_pages > 0

    def move(self, running: Collection[RunningRequest], step: int) -> PageMoves:
        """Decide who leaves and who returns in the step being scheduled. running: everybody in a slot."""
        if not self.is_on:
            return PageMoves()
        self._welcome()
        self._keep_guests()
        here = [each.request for each in running if each.present] + [each.running.request for each in self._returning]
        self._num_spare = self._kv_cache.num_free_pages - sum(self._num_missing(request) for request in here)
        self._choose_leaving(len(here) - len(self._returning), step)
        return PageMoves(offloads=self._send_away(step), restores=self._bring_back(step))

    def may_admit(self, request: Request) -> bool:
        """Whether a request may take pages after `move`: nobody is away, and all who run have enough besides."""
        if not self.is_on:
            return True
        num_tokens = min(self._soon(request), request.spec.max_kv_len)
        return not (self._leaving or self._away) and self._kv_cache.pages_for(num_tokens) <= self._num_spare

    def admit(self, running: RunningRequest) -> None:
        """A request has got its slot, and its worst case is reserved."""
        self._num_spare -= self._num_missing(running.request)
        if self._kv_cache.is_guest(running.request.request_id):
            self._guests.append(running)

    def release(self, running: RunningRequest) -> None:
        """A request leaves its slot, wherever its pages are."""
        self._guests = [each for each in self._guests if each is not running]
        self._leaving = [each for each in self._leaving if each.running is not running]
        self._away = deque(each for each in self._away if each is not running)
        self._returning = [each for each in self._returning if each.running is not running]

    def _welcome(self) -> None:
        """Whose pages are back takes part again."""
        for each in self._returning:
            if self._kv_cache.has_retired(each.last_step):
                each.running.present = True
        self._returning = [each for each in self._returning if not each.running.present]

    def _keep_guests(self) -> None:
        """The guests that came first get what has come free of the device's reservations."""
        while self._guests and self._guests[0].present:
            first = self._guests[0].request.request_id
            if not self._kv_cache.can_keep(first):
                return
            self._kv_cache.keep(first)
            self._guests.pop(0)

    def _choose_leaving(self, num_present: int, step: int) -> None:
        """Until those who stay have enough; one may always stay."""
        leaving = sum(self._num_pages(each.running.request) for each in self._leaving)
        lacking = -self._num_spare - self._kv_cache.num_draining_pages - leaving
        for guest in reversed(self._guests):
            if lacking <= 0 or num_present <= 1:
                return
            if guest.present:
                missing = self._num_missing(guest.request)
                self._num_spare += missing
                lacking -= missing + self._num_pages(guest.request)
                num_present -= 1
                guest.leave()
                self._leaving.append(_Moving(guest, step - 1))

    def _send_away(self, step: int) -> tuple[PageMove, ...]:
        moves = []
        for each in self._leaving:
            if self._kv_cache.has_retired(each.last_step):
                moves.append(_page_move(each.running, self._kv_cache.offload(each.running.request.request_id, step)))
                self._away.append(each.running)
        self._leaving = [each for each in self._leaving if not self._kv_cache.has_retired(each.last_step)]
        return tuple(moves)

    def _bring_back(self, step: int) -> tuple[PageMove, ...]:
        moves = []
        while self._away and self._num_missing(self._away[0].request) <= self._num_spare:
            first = self._away.popleft()
            self._num_spare -= self._num_missing(first.request)
            moves.append(_page_move(first, self._kv_cache.restore(first.request.request_id, step)))
            self._returning.append(_Moving(first, step))
        return tuple(moves)

    def _num_missing(self, request: Request) -> int:
        """Pages that a request in a slot may ask for soon."""
        return self._kv_cache.num_missing(request.request_id, self._soon(request))

    def _soon(self, request: Request) -> int:
        """Tokens to have room for: its prompt, its next block, and a margin."""
        return request.decode_bound + _MARGIN_PAGES * self._kv_cache.page_size

    def _num_pages(self, request: Request) -> int:
        return self._kv_cache.num_pages_of(request.request_id)


def _page_move(running: RunningRequest, moved: MovedPages) -> PageMove:
    return PageMove(running.slot, moved.pages, moved.host_pages)
