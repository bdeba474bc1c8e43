"""The one owner of KV-cache pages. No torch: it deals in page numbers, the executor in memory.

A request reserves its worst case when it is admitted, so a running request never waits for a page; pages themselves are
granted as it grows. Pages given back while steps that may write them are in flight come free when the last of those
steps has retired.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Holding:
    reserved: int  # pages
    pages: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Draining:
    last_step: int
    pages: tuple[int, ...]
    reserved: int


class KvCacheManager:
    """Pages of page_size tokens, each free, held by one request, or draining."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = deque(range(num_pages))
        self._holdings: dict[int, _Holding] = {}
        self._draining: deque[_Draining] = deque()
        self._reserved = 0
        self._retired_step = -1

    @property
    def num_free_pages(self) -> int:
        """Pages that nobody holds and no step in flight can write."""
        return len(self._free)

    @property
    def num_unreserved_pages(self) -> int:
        """Pages that a new request may still reserve."""
        return self.num_pages - self._reserved

    def pages_for(self, num_tokens: int) -> int:
        """Pages that num_tokens tokens fill."""
        return -(-num_tokens // self.page_size)

    def can_allocate(self, max_tokens: int) -> bool:
        """Whether a request that may grow to max_tokens can be admitted now."""
        return self.pages_for(max_tokens) <= self.num_unreserved_pages

    def allocate(self, request_id: int, max_tokens: int) -> None:
        """Reserve room for a request that may grow to max_tokens; grants no page yet."""
        assert request_id not in self._holdings, request_id
        assert self.can_allocate(max_tokens), max_tokens
        self._holdings[request_id] = _Holding(self.pages_for(max_tokens))
        self._reserved += self.pages_for(max_tokens)

    def append(self, request_id: int, num_tokens: int) -> tuple[int, ...]:
        """Grant pages until the request holds room for num_tokens in all; returns the new ones, in order."""
        holding = self._holdings[request_id]
        missing = self.pages_for(num_tokens) - len(holding.pages)
        if missing <= 0:
            return ()
        assert len(holding.pages) + missing <= holding.reserved, (num_tokens, holding.reserved)
        granted = tuple(self._free.popleft() for _ in range(missing))
        holding.pages.extend(granted)
        return granted

    def truncate(self, request_id: int, num_tokens: int) -> int:
        """Take back the pages beyond num_tokens, a bound that no step in flight writes past; returns how many."""
        pages = self._holdings[request_id].pages
        num_surplus = len(pages) - self.pages_for(num_tokens)
        if num_surplus <= 0:
            return 0
        self._free.extend(pages.pop() for _ in range(num_surplus))
        return num_surplus

    def free(self, request_id: int, last_step: int) -> None:
        """Give back everything of a request; its pages come free when step last_step has retired."""
        holding = self._holdings.pop(request_id)
        self._draining.append(_Draining(last_step, tuple(holding.pages), holding.reserved))
        self._reclaim()

    def retire(self, step: int) -> None:
        """Step `step` and all before it have finished on the device."""
        self._retired_step = step
        self._reclaim()

    def num_pages_of(self, request_id: int) -> int:
        """Pages granted to a request."""
        return len(self._holdings[request_id].pages)

    def check_integrity(self) -> None:
        """Raise RuntimeError unless every page is in exactly one place and every count agrees."""
        held = [page for holding in self._holdings.values() for page in holding.pages]
        draining = [page for drained in self._draining for page in drained.pages]
        if sorted([*self._free, *held, *draining]) != list(range(self.num_pages)):
            raise RuntimeError(
                f"pages lost or doubled: {len(self._free)} free, {len(held)} held, {len(draining)} draining"
            )
        reserved = sum(holding.reserved for holding in self._holdings.values())
        reserved += sum(drained.reserved for drained in self._draining)
        if reserved != self._reserved or reserved > self.num_pages:
            raise RuntimeError(f"{reserved} pages reserved, {self._reserved} counted, {self.num_pages} in all")
        over = [request for request, holding in self._holdings.items() if len(holding.pages) > holding.reserved]
        if over:
            raise RuntimeError(f"request {over[0]} holds more pages than it reserved")

    def _reclaim(self) -> None:
        waiting: deque[_Draining] = deque()
        for drained in self._draining:
            if drained.last_step > self._retired_step:
                waiting.append(drained)
                continue
            self._free.extend(drained.pages)
            self._reserved -= drained.reserved
        self._draining = waiting
