"""The page manager against a naive model that lists what every request has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sparsespec.runtime.kv_cache import KvCacheManager


def pages_touched(num_tokens: int, page_size: int) -> int:
    return len(dict.fromkeys(token // page_size for token in range(num_tokens)))


@dataclass
class Held:
    """What a request has."""

    limit: int  # pages
    guest: bool
    pages: list[int] = field(default_factory=list)
    host_pages: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Given:
    """What comes free after a step."""

    last_step: int
    held: Held


class KvCacheMachine(RuleBasedStateMachine):
    """Every operation, on any request, in any order."""

    @initialize(num_pages=st.integers(1, 12), page_size=st.integers(1, 5), num_host_pages=st.integers(0, 20))
    def start(self, num_pages: int, page_size: int, num_host_pages: int) -> None:
        self.manager = KvCacheManager(num_pages, page_size, num_host_pages)
        self.page_size = page_size
        self.free_pages = list(range(num_pages))
        self.free_host_pages = list(range(num_host_pages))
        self.requests: dict[int, Held] = {}
        self.draining: list[Given] = []
        self.retired = -1
        self.next_id = 0

    @rule(num_tokens=st.integers(1, 40))
    def allocate(self, num_tokens: int) -> None:
        limit = self.page_count(num_tokens)
        fits = limit <= self.unreserved() and not any(each.guest for each in self.requests.values())
        guest = not fits and limit <= self.unreserved_on_the_host()
        assert self.manager.can_allocate(num_tokens) == (fits or guest)
        if fits or guest:
            self.manager.allocate(self.next_id, num_tokens)
            assert self.manager.is_guest(self.next_id) == guest
            self.requests[self.next_id] = Held(limit, guest)
            self.next_id += 1

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        request, held = self.pick(data, list(self.requests))
        if held.host_pages:
            return
        num_tokens = data.draw(st.integers(0, held.limit * self.page_size))
        missing = max(0, self.page_count(num_tokens) - len(held.pages))
        assert self.manager.num_missing(request, num_tokens) == missing
        assert self.manager.num_missing(request, 1000) == held.limit - len(held.pages)
        assert self.manager.can_append(request, num_tokens) == (missing <= len(self.free_pages))
        if missing <= len(self.free_pages):
            granted = self.manager.append(request, num_tokens)
            assert len(granted) == missing
            self.take(self.free_pages, granted)
            held.pages.extend(granted)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        request, held = self.pick(data, list(self.requests))
        num_tokens = data.draw(st.integers(0, held.limit * self.page_size))
        surplus = held.pages[self.page_count(num_tokens) :]
        assert self.manager.truncate(request, num_tokens) == len(surplus)
        held.pages = held.pages[: self.page_count(num_tokens)]
        self.free_pages.extend(surplus)

    @precondition(lambda self: self.guests_here())
    @rule(data=st.data(), ahead=st.integers(1, 3))
    def offload(self, data: st.DataObject, ahead: int) -> None:
        request, held = self.pick(data, self.guests_here())
        if len(held.pages) > len(self.free_host_pages):
            return  # those of the last time are being read
        moved = self.manager.offload(request, self.retired + ahead)
        assert list(moved.pages) == held.pages
        assert len(moved.host_pages) == len(held.pages)
        self.take(self.free_host_pages, moved.host_pages)
        self.draining.append(Given(self.retired + ahead, Held(0, False, held.pages)))
        held.pages, held.host_pages = [], list(moved.host_pages)

    @precondition(lambda self: any(each.host_pages for each in self.requests.values()))
    @rule(data=st.data(), ahead=st.integers(1, 3))
    def restore(self, data: st.DataObject, ahead: int) -> None:
        request, held = self.pick(data, [each for each, held in self.requests.items() if held.host_pages])
        if len(held.host_pages) > len(self.free_pages):
            return
        moved = self.manager.restore(request, self.retired + ahead)
        assert list(moved.host_pages) == held.host_pages
        assert len(moved.pages) == len(held.host_pages)
        self.take(self.free_pages, moved.pages)
        self.draining.append(Given(self.retired + ahead, Held(0, True, host_pages=held.host_pages)))
        held.pages, held.host_pages = list(moved.pages), []

    @precondition(lambda self: self.guests_here())
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        request, held = self.pick(data, self.guests_here())
        assert self.manager.can_keep(request) == (held.limit <= self.unreserved())
        if held.limit <= self.unreserved():
            self.manager.keep(request)
            held.guest = False

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), ahead=st.integers(0, 3))
    def free(self, data: st.DataObject, ahead: int) -> None:
        request, held = self.pick(data, list(self.requests))
        self.manager.free(request, self.retired + ahead)
        self.draining.append(Given(self.retired + ahead, held))
        self.requests.pop(request)
        self.reclaim()

    @rule(steps=st.integers(1, 2))
    def retire(self, steps: int) -> None:
        self.retired += steps
        self.manager.retire(self.retired)
        assert self.manager.has_retired(self.retired)
        assert not self.manager.has_retired(self.retired + 1)
        self.reclaim()

    @invariant()
    def counts_agree(self) -> None:
        self.manager.check_integrity()
        assert self.manager.num_free_pages == len(self.free_pages)
        assert self.manager.num_draining_pages == sum(len(given.held.pages) for given in self.draining)
        assert self.manager.num_used_host_pages == self.manager.num_host_pages - len(self.free_host_pages)
        assert self.manager.num_unreserved_pages == self.unreserved()
        assert self.manager.num_unreserved_host_pages == self.unreserved_on_the_host()
        for request, held in self.requests.items():
            assert self.manager.num_pages_of(request) == len(held.pages)
            assert self.manager.num_host_pages_of(request) == len(held.host_pages)

    def pick(self, data: st.DataObject, requests: list[int]) -> tuple[int, Held]:
        request = data.draw(st.sampled_from(requests))
        return request, self.requests[request]

    def guests_here(self) -> list[int]:
        return [request for request, held in self.requests.items() if held.guest and not held.host_pages]

    def take(self, free: list[int], pages: tuple[int, ...]) -> None:
        for page in pages:
            free.remove(page)

    def reclaim(self) -> None:
        for given in [given for given in self.draining if given.last_step <= self.retired]:
            self.free_pages.extend(given.held.pages)
            self.free_host_pages.extend(given.held.host_pages)
            self.draining.remove(given)

    def unreserved(self) -> int:
        return self.manager.num_pages - sum(held.limit for held in self.everybody() if not held.guest)

    def unreserved_on_the_host(self) -> int:
        return self.manager.num_host_pages - sum(held.limit for held in self.everybody() if held.guest)

    def everybody(self) -> list[Held]:
        return [*self.requests.values(), *(given.held for given in self.draining)]

    def page_count(self, num_tokens: int) -> int:
        return pages_touched(num_tokens, self.page_size)


KvCacheMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=30, deadline=None, derandomize=True)
TestKvCache = KvCacheMachine.TestCase


def make_busy_manager() -> KvCacheManager:
    """Two requests with pages, one draining, a guest with pages and one that is away; some pages free."""
    manager = KvCacheManager(num_pages=15, page_size=2, num_host_pages=16)
    for request in range(5):
        manager.allocate(request, 6 if request < 3 else 14)
        manager.append(request, 4)
    manager.free(2, last_step=5)
    manager.offload(4, step=-1)
    manager.retire(0)
    manager.check_integrity()
    return manager


def double_a_page(manager: KvCacheManager) -> None:
    manager._free.append(manager._holdings[0].pages[0])


def lose_a_free_page(manager: KvCacheManager) -> None:
    manager._free.pop()


def share_a_page(manager: KvCacheManager) -> None:
    manager._holdings[0].pages[0] = manager._holdings[1].pages[0]


def forget_the_draining(manager: KvCacheManager) -> None:
    manager._draining.clear()


def double_a_host_page(manager: KvCacheManager) -> None:
    manager._free_host.append(manager._holdings[4].host_pages[0])


def forget_a_guest(manager: KvCacheManager) -> None:
    manager._holdings[3].guest = False


def be_in_two_places(manager: KvCacheManager) -> None:
    manager._holdings[4].pages.append(manager._free.pop())


def miscount_reservations(manager: KvCacheManager) -> None:
    manager._reserved -= 1


def reserve_less_than_held(manager: KvCacheManager) -> None:
    manager._holdings[0].reserved -= 2
    manager._reserved -= 2


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (double_a_page, "pages lost or doubled"),
        (lose_a_free_page, "pages lost or doubled"),
        (share_a_page, "pages lost or doubled"),
        (forget_the_draining, "pages lost or doubled"),
        (double_a_host_page, "host pages lost or doubled"),
        (forget_a_guest, "16 pages reserved, 9 counted, 15 in all"),
        (be_in_two_places, "request 4 is on the device and in host memory"),
        (miscount_reservations, "9 pages reserved, 8 counted, 15 in all"),
        (reserve_less_than_held, "request 0 holds more pages than it reserved"),
    ],
)
def test_integrity_check_sees_corruption(corrupt: Callable[[KvCacheManager], None], message: str) -> None:
    manager = make_busy_manager()
    corrupt(manager)
    with pytest.raises(RuntimeError, match=message):
        manager.check_integrity()


def test_a_reservation_keeps_pages_that_are_not_granted_yet() -> None:
    """A running request never waits for a page: admission counts what others may still take."""
    manager = KvCacheManager(num_pages=4, page_size=4)
    manager.allocate(0, 12)
    assert manager.num_free_pages == 4
    assert not manager.can_allocate(5)
    assert manager.can_allocate(4)


def test_freed_pages_wait_for_their_own_step_only() -> None:
    manager = KvCacheManager(num_pages=2, page_size=1)
    for request, last_step in ((0, 7), (1, 5)):
        manager.allocate(request, 1)
        manager.append(request, 1)
        manager.free(request, last_step)
    free_after = []
    for step in (4, 5, 6, 7):
        manager.retire(step)
        free_after.append(manager.num_free_pages)
    assert free_after == [0, 1, 1, 2]
