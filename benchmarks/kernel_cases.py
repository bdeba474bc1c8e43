"""What the kernel benchmark can time: geometries, steps of their slots and the bytes these move, and targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from sparsespec.plugins.phase import Phase
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.drafter import make_drafter

SPECULATION = SpeculationConfig()
DRAFT_LEN = SPECULATION.draft_len
DRAFT_INDEX = DRAFT_LEN // 2  # of every draft that is timed: half of the block is drafted
BLOCK_ROWS = DRAFT_LEN + 1
INDEX_BYTES = 4  # of a position in a list, and of a page
PILLAR_RATIO = 0.05
RECENT = 17  # tokens that a draft reads besides its pillars, its own among them
SCORE_PLANES = 2  # of "diagonal", in fp16
SCORE_BYTES = 2
KV_DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
# What drafts read of all pools together, at the least, where the model has so many layers: twenty times an H200's L2.
ROTATED_BYTES = 10**9
LEAST_POOLS = 4

KvDtype = Literal["bf16", "fp8"]
Op = Literal["attention", "select", "plan"]
PeerKind = Literal["decode", "decode, CUDA cores", "sparse", "sparse, CUDA cores", "fa2", "fa3", "BatchAttention"]
Figure = Literal["gigabytes_per_s", "ratio", "relative"]
RelationKind = Literal["overhead over", "share of", "of the ideal of", "of the best of", "times as fast as"]


@dataclass(frozen=True)
class Geometry:
    """A batch of equally long requests."""

    batch: int
    context: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int = 36  # of the model that it stands for: a timed step runs so many
    room: int = 2 * DRAFT_LEN  # tokens of a slot beyond its context
    page_size: int = 16

    @property
    def name(self) -> str:
        """In tables."""
        return f"{self.batch} x {self.context}, {self.num_heads}/{self.num_kv_heads}, d {self.head_dim}"

    @property
    def positions(self) -> int:
        """Room of a slot."""
        return self.context + self.room

    @property
    def slot_pages(self) -> int:
        """Pages of a slot."""
        return -(-self.positions // self.page_size)

    @property
    def pool_shape(self) -> tuple[int, int, int, int, int]:
        """Of one layer's KV pool."""
        return self.batch * self.slot_pages, 2, self.num_kv_heads, self.page_size, self.head_dim

    @property
    def pool_bytes(self) -> int:
        """Of one layer's KV pool in bf16."""
        return self.batch * self.slot_pages * self.page_size * self.num_kv_heads * self.head_dim * 4

    @property
    def num_pools(self) -> int:
        """Pools that the layers take in turn, so that the L2 cache helps no more than it does in a model."""
        wanted = -(-ROTATED_BYTES // int(PILLAR_RATIO * self.pool_bytes))
        return min(max(LEAST_POOLS, wanted), self.num_layers)


@dataclass(frozen=True)
class DraftList:
    """Tokens per KV head that a draft row reads. `recent` counts its own."""

    staying: int = 0
    moving: int = 0
    lookups: int = 0
    recent: int = RECENT

    @property
    def total(self) -> int:
        """All of them."""
        return self.staying + self.moving + self.lookups + self.recent


def pillar_list(context: int) -> DraftList:
    """As the paper drafts: pillars that stay, and the newest tokens."""
    return DraftList(staying=int(PILLAR_RATIO * context))


def shipped_list(context: int) -> DraftList:
    """As this project drafts by default; the last block's tokens are recent too."""
    split = make_drafter(SPECULATION).split(torch.tensor([SPECULATION.budget(context)]))
    staying, moving, lookups, recent = map(int, (split.staying, split.moving, split.lookups, split.recent))
    return DraftList(staying, moving, lookups, recent + DRAFT_LEN + DRAFT_INDEX + 1)


@dataclass(frozen=True)
class Workload:
    """Which rows every slot of a step has, and what they read."""

    geometry: Geometry
    phases: tuple[Phase, ...]
    num_rows: int = BLOCK_ROWS  # of each slot that verifies or reads a prompt
    draft: DraftList = DraftList()
    scored: bool = False
    kv_dtype: KvDtype = "bf16"
    cached: bool = False  # all slots have the pages of one, and all layers a pool, so that the L2 cache has them

    def count(self, phase: Phase) -> int:
        """Slots in a phase."""
        return self.phases.count(phase)

    @property
    def num_scored(self) -> int:
        """Slots that leave scores."""
        return self.count(Phase.VERIFY) if self.scored else 0

    @property
    def element_bytes(self) -> int:
        """Of a key's or value's element."""
        return KV_DTYPES[self.kv_dtype].itemsize


def share_of_slots(batch: int, others: Phase) -> tuple[Phase, ...]:
    """One request in k + 1 verifies, as under the unified schedule."""
    return tuple(Phase.VERIFY if slot % BLOCK_ROWS == 0 else others for slot in range(batch))


def recent_start(workload: Workload) -> int:
    """First of the tokens that every draft row reads, up to its own."""
    return max(0, workload.geometry.context + DRAFT_INDEX + 1 - workload.draft.recent)


def score_bytes(workload: Workload, positions: int) -> int:
    """Scores of one layer, of so many positions."""
    return workload.num_scored * SCORE_PLANES * workload.geometry.num_kv_heads * positions * SCORE_BYTES


def kv_bytes(workload: Workload) -> int:
    """Keys and values that one layer's rows read, each once per KV head."""
    geometry = workload.geometry
    everything = geometry.context + workload.num_rows
    full = workload.count(Phase.VERIFY) + workload.count(Phase.PREFILL)
    tokens = workload.count(Phase.DRAFT) * workload.draft.total + full * everything
    return tokens * geometry.num_kv_heads * 2 * geometry.head_dim * workload.element_bytes


def row_bytes(workload: Workload) -> int:
    """What one layer moves besides: the rows of qkv, their outputs, their keys and values in the cache, the lists of
    drafts and the page tables of all slots with rows.
    """
    geometry = workload.geometry
    verifying = workload.count(Phase.VERIFY) + workload.count(Phase.PREFILL)
    rows = workload.count(Phase.DRAFT) + verifying * workload.num_rows
    token = 2 * geometry.num_kv_heads * geometry.head_dim
    row = 2 * (2 * geometry.num_heads * geometry.head_dim + token) + token * workload.element_bytes
    listed = workload.count(Phase.DRAFT) * geometry.num_kv_heads * (workload.draft.staying + workload.draft.moving)
    paged = (workload.count(Phase.DRAFT) + verifying) * -(-geometry.context // geometry.page_size)
    return rows * row + (listed + paged) * INDEX_BYTES


def peer_bytes(kind: PeerKind, workload: Workload) -> int:
    """Keys and values that the peer reads in the same geometry, in all of its slots."""
    geometry = workload.geometry
    tokens = workload.draft.total if kind.startswith("sparse") else geometry.context + workload.num_rows
    return geometry.batch * tokens * geometry.num_kv_heads * 2 * geometry.head_dim * workload.element_bytes


def prefill_flops(workload: Workload) -> int:
    """Multiplications and additions of causal attention in one layer; 0 where nothing is prefilled."""
    geometry, rows = workload.geometry, workload.num_rows
    pairs = rows * geometry.context + rows * (rows + 1) // 2
    return workload.count(Phase.PREFILL) * 4 * geometry.num_heads * geometry.head_dim * pairs


@dataclass(frozen=True)
class Target:
    """What a row of the table must reach."""

    figure: Figure
    limit: float
    at_most: bool = False

    def holds(self, value: float) -> bool:
        """Whether it is reached."""
        return value <= self.limit if self.at_most else value >= self.limit

    @property
    def text(self) -> str:
        """In tables."""
        sign = "<=" if self.at_most else ">="
        if self.figure == "gigabytes_per_s":
            return f"{sign} {self.limit:.0f} GB/s"
        return f"{sign} {self.limit:g}{'x FlashInfer' if self.figure == 'ratio' else ''}"


@dataclass(frozen=True)
class Relation:
    """What a case is measured by beside itself: cases of its own set, or else of its group, by name."""

    kind: RelationKind
    to: tuple[str, ...]
    weights: tuple[float, ...] = ()  # of their times in the ideal


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    workload: Workload
    op: Op = "attention"
    peers: tuple[PeerKind, ...] = ()
    relation: Relation | None = None
    targets: tuple[Target, ...] = ()

    @property
    def drafts_only(self) -> bool:
        """Whether its ceiling is a gather of the rows, not a read."""
        return self.op == "attention" and self.workload.count(Phase.DRAFT) == self.workload.geometry.batch

    @property
    def bytes(self) -> int:
        """That the op has to move, per layer: keys, values and the scores that are written, or read to select."""
        if self.op == "plan":
            return 0
        if self.op == "select":
            return score_bytes(self.workload, recent_start(self.workload))
        scored = self.workload.geometry.context + self.workload.num_rows
        return kv_bytes(self.workload) + score_bytes(self.workload, scored)

    @property
    def all_bytes(self) -> int:
        """Of attention, with its rows and lists."""
        return self.bytes + row_bytes(self.workload)


@dataclass(frozen=True)
class Group:
    """Cases under one name of the command line; those of a set share a geometry's pools and are replayed in turn."""

    name: str
    sets: tuple[tuple[Case, ...], ...]
