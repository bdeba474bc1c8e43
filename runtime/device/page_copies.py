"""KV pages to host memory and back, all layers of a page at once, beside the steps.

Copies are enqueued on a stream of their own, one after the other. They follow the steps that were enqueued before; a
step follows the copies whose pages it is granted, and those of its own slots. All of that is said with CUDA events:
neither the host nor the GPU waits for the other. On the CPU everything happens at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from sparsespec.builder.errors import InputError
from sparsespec.runtime.device.slot_state import pinned
from sparsespec.runtime.scheduled_step import PageMove, ScheduledStep
from sparsespec.runtime.trt.device_stream import current_device

# Of device memory, in which pages are put together: a DMA reads or writes contiguous bytes best.
_STAGING_BYTES = 2**26


class PageCopies:
    """Host memory for pages, and the copies of every step."""

    def __init__(self, kv_pool: Tensor, num_host_pages: int) -> None:
        """kv_pool: [num_layers, num_pages, 2, num_kv_heads, page_size, head_dim].

        Raises InputError where there is no memory.
        """
        self._pool = kv_pool.flatten(2).view(torch.int32).transpose(0, 1)  # [num_pages, num_layers, numbers]
        shape = self._pool.shape[1:]
        chunk = max(1, _STAGING_BYTES // (shape.numel() * torch.int32.itemsize))
        size = num_host_pages * shape.numel() * torch.int32.itemsize
        try:
            self._staging = torch.empty(chunk, *shape, dtype=torch.int32, device=kv_pool.device)
            self._host = torch.empty(num_host_pages, *shape, dtype=torch.int32)
            self._stream = torch.cuda.Stream(kv_pool.device) if kv_pool.is_cuda else None
            if self._stream:
                _pin(self, self._host, kv_pool.device)
        except RuntimeError as error:
            raise InputError(
                f"no memory for {size / 1e9:.1f} GB of KV pages on the host; lower kv_cache_host_memory_bytes ({error})"
            ) from error
        self._last_copy: dict[int, torch.cuda.Event] = {}  # by page, of those that were copied and not granted since
        self._arrival: dict[int, torch.cuda.Event] = {}  # by slot, of those restored that had no rows since

    def enqueue(self, step: ScheduledStep) -> None:
        """The copies of a step that is about to be enqueued on the current stream, and what it has to wait for."""
        if self._stream is None:
            self._copy(step)
            return
        current = torch.cuda.current_stream(self._staging.device)
        for event in self._awaited(step):
            current.wait_event(event)
        if step.offloads or step.restores:
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                self._copy(step)
            self._remember(step, self._stream.record_event())

    def _copy(self, step: ScheduledStep) -> None:
        for move in step.offloads:
            for part in _parts(move, len(self._staging)):
                self._to_host(part)
        for move in step.restores:
            for part in _parts(move, len(self._staging)):
                self._to_device(part)

    def _to_host(self, part: PageMove) -> None:
        staged = self._staging[: len(part.pages)]
        torch.index_select(self._pool, 0, self._numbers(part.pages), out=staged)
        for first, run in _runs(part.host_pages):
            self._host[run].copy_(staged[first : first + len(self._host[run])], non_blocking=True)

    def _to_device(self, part: PageMove) -> None:
        staged = self._staging[: len(part.pages)]
        for first, run in _runs(part.host_pages):
            staged[first : first + len(self._host[run])].copy_(self._host[run], non_blocking=True)
        self._pool.index_copy_(0, self._numbers(part.pages), staged)

    def _numbers(self, pages: Sequence[int]) -> Tensor:
        device = self._staging.device
        return pinned(pages, torch.int64, device).to(device, non_blocking=True)

    def _awaited(self, step: ScheduledStep) -> list[torch.cuda.Event]:
        """Copies that touch pages which the step is granted, and those that bring its slots' pages; mostly none."""
        granted = [page for grant in step.page_grants for page in grant.pages] if self._last_copy else []
        slots = [row.slot for row in step.rows] if self._arrival else []
        events = [self._last_copy.pop(page, None) for page in granted]
        events += [self._arrival.pop(slot, None) for slot in slots]
        return list(dict.fromkeys(event for event in events if event is not None))

    def _remember(self, step: ScheduledStep, event: torch.cuda.Event) -> None:
        for move in (*step.offloads, *step.restores):
            self._last_copy.update(dict.fromkeys(move.pages, event))
        self._arrival.update({move.slot: event for move in step.restores})


def _parts(move: PageMove, size: int) -> list[PageMove]:
    """At most `size` pages each."""
    starts = range(0, len(move.pages), size)
    return [
        PageMove(move.slot, move.pages[start : start + size], move.host_pages[start : start + size]) for start in starts
    ]


def _runs(pages: Sequence[int]) -> list[tuple[int, slice]]:
    """Pages that follow one another, as places: where each run begins among the given ones, and its pages."""
    runs = []
    for _, run in groupby(enumerate(pages), key=lambda place: place[1] - place[0]):
        places = list(run)
        runs.append((places[0][0], slice(places[0][1], places[-1][1] + 1)))
    return runs


def _pin(owner: object, host: Tensor, device: torch.device) -> None:
    """Lock memory while `owner` lives. torch's own pinned memory would be rounded up to a power of two."""
    with current_device(device):
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(host.data_ptr(), host.nbytes, 0))
    weakref.finalize(owner, _unpin, host, device)


def _unpin(host: Tensor, device: torch.device) -> None:
    with current_device(device):
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaHostUnregister(host.data_ptr())
