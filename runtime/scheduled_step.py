"""A step as the scheduler decides it: a frozen value that the executor turns into tensors. No torch."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from sparsespec.plugins.phase import DRAFT, Phase
from sparsespec.runtime.request import RequestSpec
from sparsespec.runtime.sampling_params import SamplingNeeds


@dataclass(frozen=True)
class Admission:
    """A request takes a slot; its prompt and parameters go to the device."""

    slot: int
    spec: RequestSpec


class PageGrant(NamedTuple):
    """Pages added to a slot's page table, from index first on."""

    slot: int
    first: int
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PageMove:
    """A slot's pages to host memory or back: pages[i] of the device and host_pages[i] hold the same tokens after it."""

    slot: int
    pages: tuple[int, ...]
    host_pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScheduledRows:
    """One slot's part in a step."""

    slot: int
    generation: int
    phase: Phase
    num_rows: int
    draft_index: int
    num_logits: int  # last rows whose logits are needed
    block_rows: int  # rows of the block that ends here: a verification's, or the last of a prompt; 0 elsewhere
    scored: bool  # whether the block's rows choose pillars: drafts follow
    needs: SamplingNeeds
    packed: bytes = field(init=False, repr=False, compare=False)  # PACKED_FIELDS; the same rows serve many cycles

    def __post_init__(self) -> None:
        packed = array("i", [getattr(self, name) for name in PACKED_FIELDS]).tobytes()
        object.__setattr__(self, "packed", packed)


# Of ScheduledRows.packed, int32 each.
PACKED_FIELDS = ("num_rows", "num_logits", "scored", "phase", "draft_index", "block_rows")


@dataclass(frozen=True)
class ScheduledStep:
    """Everything the executor needs to know of one step; rows are in slot order.

    Offloads and restores follow the steps before; whatever writes or reads a page that they touch follows them. A
    restored slot's page table is made anew.
    """

    index: int
    admissions: tuple[Admission, ...]
    page_grants: tuple[PageGrant, ...]
    rows: tuple[ScheduledRows, ...]
    offloads: tuple[PageMove, ...] = ()
    restores: tuple[PageMove, ...] = ()
    budget: int = 0  # what drafts read after blocks that end here: a place among the executor's budgets

    @cached_property
    def landing(self) -> tuple[ScheduledRows, ...]:
        """Rows that move a length: prompt chunks and verifications. All others are drafts, one row with logits each."""
        return tuple([row for row in self.rows if row.phase is not DRAFT])
