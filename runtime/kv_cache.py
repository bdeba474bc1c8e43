"""The one owner of KV-cache pages, on the device and in host memory. No torch: it deals in page numbers, the executor
in memory.

A request reserves its worst case when it is admitted: on the device while there is room, and where that is full in host
memory. The first kind never waits for a page longer than the others take to leave; the second, guests, use what the
first leave free, and can always be offloaded. Pages themselves are granted as a request grows. Pages given back while
steps that may write or copy them are in flight come free when the last of those steps has retired.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Holding:
    reserved: int  # pages
    guest: bool  # they are reserved in host memory
    pages: list[int] = field(default_factory=list)
    host_pages: list[int] = field(default_factory=list)  # never while it holds pages


@dataclass(frozen=True)
class _Draining:
    last_step: int
    pages: tuple[int, ...] = ()
    host_pages: tuple[int, ...] = ()
    reserved: int = 0
    host_reserved: int = 0


@dataclass(frozen=True)
class MovedPages:
    """A request's pages on their way between device and host, in the order of its tokens."""

    pages: tuple[int, ...]
    host_pages: tuple[int, ...]  # as many


class KvCacheManager:
    """Pages of page_size tokens, each free, held by one request, or draining."""

    def __init__(self, num_pages: int, page_size: int, num_host_pages: int = 0) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.num_host_pages = num_host_pages
        self._free = deque(range(num_pages))
        self._free_host = deque(range(num_host_pages))
        self._holdings: dict[int, _Holding] = {}
        self._draining: deque[_Draining] = deque()
        self._reserved = 0
        self._host_reserved = 0
        self._retired_step = -1

    @property
    def num_free_pages(self) -> int:
        """Pages that nobody holds and no step in flight can write."""
        return len(self._free)

    @property
    def num_draining_pages(self) -> int:
        """Pages that come free when steps in flight have retired."""
        return sum(len(drained.pages) for drained in self._draining)

    @property
    def num_unreserved_pages(self) -> int:
        """Pages that a new request may still reserve on the device."""
        return self.num_pages - self._reserved

    @property
    def num_unreserved_host_pages(self) -> int:
        """Pages that a new guest may still reserve in host memory."""
        return self.num_host_pages - self._host_reserved

    @property
    def num_used_host_pages(self) -> int:
        """Host pages that requests hold, or that copies in flight read."""
        return self.num_host_pages - len(self._free_host)

    def pages_for(self, num_tokens: int) -> int:
        """Pages that num_tokens tokens fill."""
        return -(-num_tokens // self.page_size)

    def can_allocate(self, max_tokens: int) -> bool:
        """Whether the worst case of a request that may grow to max_tokens can be reserved now."""
        pages = self.pages_for(max_tokens)
        return self._fits_the_device(pages) or pages <= self.num_unreserved_host_pages

    def allocate(self, request_id: int, max_tokens: int) -> None:
        """Reserve room for a request that may grow to max_tokens; grants no page yet."""
        assert request_id not in self._holdings, request_id
        assert self.can_allocate(max_tokens), max_tokens
        pages = self.pages_for(max_tokens)
        guest = not self._fits_the_device(pages)
        self._holdings[request_id] = _Holding(pages, guest)
        self._reserve(0 if guest else pages, pages if guest else 0)

    def is_guest(self, request_id: int) -> bool:
        """Whether a request has its worst case reserved in host memory: it may be offloaded."""
        return self._holdings[request_id].guest

    def can_keep(self, request_id: int) -> bool:
        """Whether a guest's worst case can be reserved on the device now."""
        return self._holdings[request_id].reserved <= self.num_unreserved_pages

    def keep(self, request_id: int) -> None:
        """Make a guest, which holds no host pages, one that is never offloaded again."""
        holding = self._holdings[request_id]
        assert holding.guest, request_id
        assert not holding.host_pages, request_id
        holding.guest = False
        self._reserve(holding.reserved, -holding.reserved)

    def num_missing(self, request_id: int, num_tokens: int) -> int:
        """Pages that a request lacks for num_tokens tokens in all, or for its worst case if that is less."""
        holding = self._holdings[request_id]
        return max(0, min(self.pages_for(num_tokens), holding.reserved) - len(holding.pages))

    def has_room(self, request_id: int, num_tokens: int) -> bool:
        """Whether the pages that a request holds have room for num_tokens in all."""
        return num_tokens <= len(self._holdings[request_id].pages) * self.page_size

    def can_append(self, request_id: int, num_tokens: int) -> bool:
        """Whether pages can be granted until the request holds room for num_tokens in all."""
        return self.pages_for(num_tokens) - len(self._holdings[request_id].pages) <= len(self._free)

    def append(self, request_id: int, num_tokens: int) -> tuple[int, ...]:
        """Grant pages until the request holds room for num_tokens in all; returns the new ones, in order."""
        holding = self._holdings[request_id]
        missing = self.pages_for(num_tokens) - len(holding.pages)
        if missing <= 0:
            return ()
        assert len(holding.pages) + missing <= holding.reserved, (num_tokens, holding.reserved)
        granted = self._take(missing)
        holding.pages.extend(granted)
        return granted

    def truncate(self, request_id: int, num_tokens: int) -> int:
        """Take back the pages beyond num_tokens, a bound that no step in flight writes past; returns how many."""
        pages = self._holdings[request_id].pages
        if (len(pages) - 1) * self.page_size < num_tokens:
            return 0
        num_surplus = len(pages) - self.pages_for(num_tokens)
        self._free.extend(pages.pop() for _ in range(num_surplus))
        return num_surplus

    def offload(self, request_id: int, step: int) -> MovedPages:
        """Move a guest, which no step in flight writes, to host memory; its pages come free when `step` has retired.

        step: the one that orders the copy.
        """
        holding = self._holdings[request_id]
        assert holding.guest, request_id
        assert not holding.host_pages, request_id
        pages, holding.pages = tuple(holding.pages), []
        holding.host_pages = [self._free_host.popleft() for _ in pages]
        self._draining.append(_Draining(step, pages=pages))
        return MovedPages(pages, tuple(holding.host_pages))

    def restore(self, request_id: int, step: int) -> MovedPages:
        """Move a guest back to the device; its host pages come free when `step`, which orders the copy, has retired."""
        holding = self._holdings[request_id]
        assert not holding.pages, request_id
        host_pages, holding.host_pages = tuple(holding.host_pages), []
        pages = self._take(len(host_pages))
        holding.pages.extend(pages)
        self._draining.append(_Draining(step, host_pages=host_pages))
        return MovedPages(pages, host_pages)

    def free(self, request_id: int, last_step: int) -> None:
        """Give back everything of a request; its pages come free when step last_step has retired."""
        holding = self._holdings.pop(request_id)
        self._draining.append(
            _Draining(
                last_step,
                pages=tuple(holding.pages),
                host_pages=tuple(holding.host_pages),
                reserved=0 if holding.guest else holding.reserved,
                host_reserved=holding.reserved if holding.guest else 0,
            )
        )
        self._reclaim()

    def retire(self, step: int) -> None:
        """Step `step` and all before it have finished on the device."""
        self._retired_step = step
        self._reclaim()

    def has_retired(self, step: int) -> bool:
        """Whether the host knows that `step` has finished on the device."""
        return step <= self._retired_step

    def num_pages_of(self, request_id: int) -> int:
        """Pages granted to a request."""
        return len(self._holdings[request_id].pages)

    def num_host_pages_of(self, request_id: int) -> int:
        """Host pages that keep a request."""
        return len(self._holdings[request_id].host_pages)

    def check_integrity(self) -> None:
        """Raise RuntimeError unless every page is in exactly one place and every count agrees."""
        holdings, draining = self._holdings.values(), self._draining
        held, drained = [each.pages for each in holdings], [each.pages for each in draining]
        _check_pages("pages", self.num_pages, list(self._free), held, drained)
        held, drained = [each.host_pages for each in holdings], [each.host_pages for each in draining]
        _check_pages("host pages", self.num_host_pages, list(self._free_host), held, drained)
        reserved = sum(each.reserved for each in holdings if not each.guest) + sum(each.reserved for each in draining)
        _check_reserved("pages", reserved, self._reserved, self.num_pages)
        reserved = sum(each.reserved for each in holdings if each.guest) + sum(each.host_reserved for each in draining)
        _check_reserved("host pages", reserved, self._host_reserved, self.num_host_pages)
        for request_id, holding in self._holdings.items():
            _check_holding(request_id, holding)

    def _fits_the_device(self, pages: int) -> bool:
        """Not beside guests: whoever came first is kept first."""
        return pages <= self.num_unreserved_pages and not any(each.guest for each in self._holdings.values())

    def _reserve(self, pages: int, host_pages: int) -> None:
        self._reserved += pages
        self._host_reserved += host_pages

    def _take(self, count: int) -> tuple[int, ...]:
        return tuple([self._free.popleft() for _ in range(count)])

    def _reclaim(self) -> None:
        waiting: deque[_Draining] = deque()
        for drained in self._draining:
            if drained.last_step > self._retired_step:
                waiting.append(drained)
                continue
            self._free.extend(drained.pages)
            self._free_host.extend(drained.host_pages)
            self._reserve(-drained.reserved, -drained.host_reserved)
        self._draining = waiting


def _check_pages(
    name: str, count: int, free: list[int], held: list[list[int]], draining: list[tuple[int, ...]]
) -> None:
    all_held, all_draining = [page for part in held for page in part], [page for part in draining for page in part]
    if sorted([*free, *all_held, *all_draining]) != list(range(count)):
        raise RuntimeError(
            f"{name} lost or doubled: {len(free)} free, {len(all_held)} held, {len(all_draining)} draining"
        )


def _check_reserved(name: str, reserved: int, counted: int, most: int) -> None:
    if reserved != counted or reserved > most:
        raise RuntimeError(f"{reserved} {name} reserved, {counted} counted, {most} in all")


def _check_holding(request_id: int, holding: _Holding) -> None:
    if len(holding.pages) > holding.reserved:
        raise RuntimeError(f"request {request_id} holds more pages than it reserved")
    if holding.host_pages and (holding.pages or not holding.guest):
        raise RuntimeError(f"request {request_id} is on the device and in host memory")
