"""The page manager against a naive model that keeps one label per page."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sparsespec.runtime.kv_cache import KvCacheManager


def pages_touched(num_tokens: int, page_size: int) -> int:
    return len(dict.fromkeys(token // page_size for token in range(num_tokens)))


class KvCacheMachine(RuleBasedStateMachine):
    """Every operation, on any request, in any order."""

    @initialize(num_pages=st.integers(1, 12), page_size=st.integers(1, 5))
    def start(self, num_pages: int, page_size: int) -> None:
        self.manager = KvCacheManager(num_pages, page_size)
        self.page_size = page_size
        self.free_pages = list(range(num_pages))
        self.pages: dict[int, list[int]] = {}
        self.limits: dict[int, int] = {}  # tokens
        self.draining: list[tuple[int, list[int], int]] = []  # last step, pages, limit
        self.retired = -1
        self.next_id = 0

    @rule(limit=st.integers(1, 40))
    def allocate(self, limit: int) -> None:
        fits = self.reserved() + self.page_count(limit) <= self.manager.num_pages
        assert self.manager.can_allocate(limit) == fits
        if fits:
            self.manager.allocate(self.next_id, limit)
            self.pages[self.next_id], self.limits[self.next_id] = [], limit
            self.next_id += 1

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(list(self.pages)))
        num_tokens = data.draw(st.integers(0, self.limits[request]))
        granted = self.manager.append(request, num_tokens)
        held = len(self.pages[request])
        assert len(granted) == max(0, self.page_count(num_tokens) - held)
        for page in granted:
            self.free_pages.remove(page)
        self.pages[request].extend(granted)

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(list(self.pages)))
        num_tokens = data.draw(st.integers(0, self.limits[request]))
        kept = self.page_count(num_tokens)
        surplus = self.pages[request][kept:]
        assert self.manager.truncate(request, num_tokens) == len(surplus)
        self.pages[request] = self.pages[request][:kept]
        self.free_pages.extend(surplus)

    @precondition(lambda self: self.pages)
    @rule(data=st.data(), ahead=st.integers(0, 3))
    def free(self, data: st.DataObject, ahead: int) -> None:
        request = data.draw(st.sampled_from(list(self.pages)))
        last_step = self.retired + ahead
        self.manager.free(request, last_step)
        self.draining.append((last_step, self.pages.pop(request), self.limits.pop(request)))
        self.settle()

    @rule(steps=st.integers(1, 2))
    def retire(self, steps: int) -> None:
        self.retired += steps
        self.manager.retire(self.retired)
        self.settle()

    @invariant()
    def counts_agree(self) -> None:
        self.manager.check_integrity()
        assert self.manager.num_free_pages == len(self.free_pages)
        assert self.manager.num_unreserved_pages == self.manager.num_pages - self.reserved()
        for request, pages in self.pages.items():
            assert self.manager.num_pages_of(request) == len(pages)

    def settle(self) -> None:
        for entry in [entry for entry in self.draining if entry[0] <= self.retired]:
            self.free_pages.extend(entry[1])
            self.draining.remove(entry)

    def reserved(self) -> int:
        limits = [*self.limits.values(), *(limit for _, _, limit in self.draining)]
        return sum(self.page_count(limit) for limit in limits)

    def page_count(self, num_tokens: int) -> int:
        return pages_touched(num_tokens, self.page_size)


KvCacheMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=30, deadline=None, derandomize=True)
TestKvCache = KvCacheMachine.TestCase


def make_busy_manager() -> KvCacheManager:
    """Two requests with pages, one draining, some pages free."""
    manager = KvCacheManager(num_pages=12, page_size=2)
    for request in range(3):
        manager.allocate(request, 6)
        manager.append(request, 4)
    manager.free(2, last_step=5)
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
        (miscount_reservations, "9 pages reserved, 8 counted, 12 in all"),
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
