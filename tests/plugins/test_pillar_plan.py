"""PillarPlan's division of work, compiled for the CPU: in any batch every tile is some worker's, and only one's."""

from __future__ import annotations

import ctypes
import random
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from host_library import host_library, pointer
from sparsespec.plugins.phase import Phase

Ints = NDArray[np.int32]
# Columns of a WorkerStart.
ACTIVE, UNIT, TILE, FIRST, LAST = range(5)
UNIT_OVERHEAD = 1.5  # tiles: kUnitOverhead of slot_work.cuh
TILE_ROWS = (64, 128)  # of both ways to work


@pytest.fixture(scope="module")
def division(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return host_library("plan_on_host.cpp", tmp_path_factory.mktemp("plan"), "-x", "c++")


@dataclass(frozen=True)
class Plan:
    """What PillarPlan says of a step, and what there is to do in it."""

    starts: Ints  # [num_workers + 1, 8] among the units that workers may share
    whole_starts: Ints  # [num_workers + 1, 8] among those that stay whole
    active_slots: NDArray[np.int16]
    counts: tuple[int, int]  # of the slots with the one, and with the other
    units: Ints  # [batch, 2] units, KV tiles of each

    def ranges(self, worker: int) -> list[tuple[int, int, int, int]]:
        """(slot, unit, first tile, end) of the worker's pieces."""
        return self._walk(self.starts, worker) + self._walk(self.whole_starts, worker)

    def tiles(self, worker: int) -> int:
        return sum(end - first for *_, first, end in self.ranges(worker))

    def _walk(self, starts: Ints, worker: int) -> list[tuple[int, int, int, int]]:
        """As the kernel finds them."""
        mine, following = starts[worker], starts[worker + 1]
        unit, tile, pieces = int(mine[UNIT]), int(mine[TILE]), []
        for active in range(mine[ACTIVE], following[ACTIVE] + 1):
            is_last = active == following[ACTIVE]
            if is_last and following[UNIT] == 0 and following[TILE] == 0:
                break
            num_units, kv_tiles = self.units[self.active_slots[active]].tolist()
            end_unit = int(following[UNIT]) + int(following[TILE] > 0) if is_last else num_units
            for each in range(unit, end_unit):
                end = int(following[TILE]) if is_last and each == following[UNIT] else kv_tiles
                if tile < end:
                    pieces.append((int(self.active_slots[active]), each, tile, end))
                tile = 0
            unit = 0
        return pieces

    def parts(self) -> dict[tuple[int, int], list[int]]:
        """Who has tiles of each (slot, unit), ascending."""
        workers: dict[tuple[int, int], list[int]] = {}
        for worker in range(len(self.starts) - 1):
            for slot, unit, _, _ in self.ranges(worker):
                workers.setdefault((slot, unit), []).append(worker)
        return workers

    def merged(self, start: Ints) -> list[int]:
        """Whose parts the kernel puts together for the unit that `start` lies within."""
        named = range(start[FIRST], start[LAST] + 1)
        return [worker for worker in named if (self.starts[worker, :FIRST] != self.starts[worker + 1, :FIRST]).any()]


@dataclass(frozen=True)
class Batch:
    """A step's lengths, [batch] each."""

    num_heads: int
    num_kv_heads: int
    rows: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]  # phase, draft_index, score_rows, kv_len, recent_start, then three counts

    def plan(self, division: ctypes.CDLL, num_workers: int, tile_rows: int = 64) -> Plan:
        batch = len(self.rows)
        lengths = np.concatenate([np.cumsum([0, *self.rows]), *map(np.array, self.columns)]).astype(np.int32)
        heads = np.array([self.num_heads, self.num_kv_heads], dtype=np.int32)
        starts, active = np.zeros((2, num_workers + 1, 8), np.int32), np.zeros(batch, np.int16)
        units, counts = np.zeros((batch, 2), np.int32), np.zeros(2, np.int32)
        step = (pointer(heads), batch, pointer(lengths), tile_rows)
        division.describe_slots(*step, pointer(units))
        division.plan(*step, num_workers, pointer(starts), pointer(active), pointer(counts))
        divided, whole = counts.tolist()
        return Plan(*starts, active[: divided + whole], (divided, whole), units)


def random_batch(rng: random.Random) -> Batch:
    longest = rng.choice((100, 3000, 130000))
    slots = [_random_slot(rng, longest) for _ in range(rng.choice((1, 2, 7, 64, 200)))]
    kv_heads = rng.choice((1, 2, 8))
    return Batch(
        rng.randint(1, 16) * kv_heads,
        kv_heads,
        rows=tuple(slot[0] for slot in slots),
        columns=tuple(tuple(slot[column] for slot in slots) for column in range(1, 9)),
    )


def _random_slot(rng: random.Random, longest: int) -> tuple[int, ...]:
    phase, kv_len = rng.choice(list(Phase)), rng.randint(0, longest)
    if phase == Phase.DRAFT:
        recent = rng.randint(0, kv_len)
        chosen = [rng.randint(0, min(recent, 7000)) for _ in range(2)]
        return 1, phase, rng.randint(0, 15), 0, kv_len, recent, *chosen, rng.randint(0, 16)
    if phase == Phase.IDLE:
        return 0, phase, 0, 0, kv_len, 0, 0, 0, 0
    rows = rng.randint(1, 17) if phase == Phase.VERIFY else rng.choice((0, 1, 64, 700, 2048))
    return rows, phase, 0, rng.choice((0, min(rows, 17))), kv_len, 0, 0, 0, 0


@pytest.mark.parametrize("tile_rows", TILE_ROWS)
@pytest.mark.parametrize("num_workers", [1, 3, 108, 264, 512])
def test_every_tile_is_one_workers(division: ctypes.CDLL, num_workers: int, tile_rows: int) -> None:
    rng = random.Random(num_workers)
    for _ in range(60):
        plan = random_batch(rng).plan(division, num_workers, tile_rows)
        covered: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for worker in range(num_workers):
            for slot, unit, first, end in plan.ranges(worker):
                covered.setdefault((slot, unit), []).append((first, end))
        expected = {(slot, unit) for slot, row in enumerate(plan.units) for unit in range(row[0]) if row[1]}
        assert set(covered) == expected
        for (slot, _), pieces in covered.items():
            ends = [0, *(end for _, end in pieces)]
            assert [first for first, _ in pieces] == ends[:-1]
            assert ends[-1] == plan.units[slot][1]


@pytest.mark.parametrize("num_workers", [3, 108, 264, 512])
def test_those_who_share_a_unit_know_of_each_other(division: ctypes.CDLL, num_workers: int) -> None:
    rng = random.Random(num_workers + 1)
    num_shared = 0
    for _ in range(40):
        plan = random_batch(rng).plan(division, num_workers)
        parts = plan.parts()
        found: set[tuple[int, int]] = set()
        for start in plan.starts[plan.starts[:, TILE] > 0]:
            unit = int(plan.active_slots[start[ACTIVE]]), int(start[UNIT])
            assert plan.merged(start) == parts[unit]
            assert start[FIRST] == parts[unit][0]
            found.add(unit)
        assert found == {unit for unit, workers in parts.items() if len(workers) > 1}
        num_shared += len(found)
    assert num_shared > 0


@pytest.mark.parametrize("tile_rows", TILE_ROWS)
def test_prompts_shorter_than_their_row_tile(division: ctypes.CDLL, tile_rows: int) -> None:
    """Their last row tile is weighed as if it were full: nobody starts beyond its last KV tile for that."""
    rng = random.Random(tile_rows)
    for _ in range(200):
        count = rng.randint(1, 6)
        lengths = tuple(rng.randint(0, 200) for _ in range(count))
        columns = ((Phase.PREFILL,) * count, (0,) * count, (0,) * count, lengths, *((0,) * count for _ in range(4)))
        plan = Batch(4, 1, tuple(rng.randint(1, 40) for _ in range(count)), columns).plan(division, 264, tile_rows)
        tiles = plan.starts[:-1, TILE]
        slots = [int(plan.active_slots[active]) for active in plan.starts[:-1, ACTIVE] if active < count]
        assert all(tile < plan.units[slot, 1] for tile, slot in zip(tiles, slots, strict=False))


def test_equal_requests_are_divided_evenly(division: ctypes.CDLL) -> None:
    """96 verifications over 264 workers: shares differ by a unit's overhead and a tile.

    Stretches of equal cost have two overheads or three, and starts are rounded down to a tile. Units cost 135, more
    than kSmallUnit, so none of them is kept whole: that alone may move a start by half a unit.
    """
    columns = ((Phase.VERIFY,) * 96, (0,) * 96, (0,) * 96, (8192,) * 96, *((0,) * 96 for _ in range(4)))
    plan = Batch(32, 8, (9,) * 96, columns).plan(division, 264)
    tiles = [plan.tiles(worker) for worker in range(264)]
    assert sum(tiles) == 96 * 8 * 129
    assert max(tiles) - min(tiles) <= UNIT_OVERHEAD + 1


def test_small_units_stay_whole(division: ctypes.CDLL) -> None:
    """Drafts of seven tiles: no worker shares one, and none has more than its share and a half."""
    columns = ((Phase.DRAFT,) * 96, (4,) * 96, (0,) * 96, (8192,) * 96, (8100,) * 96, (300,) * 96, (0,) * 96, (0,) * 96)
    plan = Batch(32, 8, (1,) * 96, columns).plan(division, 264)
    assert not plan.starts[:, TILE].any()
    units = [len(plan.ranges(worker)) for worker in range(264)]
    assert sum(units) == 96 * 8
    assert max(units) == 3


def test_a_mix_is_divided_evenly(division: ctypes.CDLL) -> None:
    """A slot in nine verifies: all workers have as many drafts but for one, and tiles make up for that one."""
    drafts = [slot % 9 > 0 for slot in range(512)]
    columns = (
        tuple(Phase.DRAFT if draft else Phase.VERIFY for draft in drafts),
        (0,) * 512,
        tuple(0 if draft else 9 for draft in drafts),
        (4096,) * 512,
        tuple(4080 if draft else 0 for draft in drafts),
        tuple(204 if draft else 0 for draft in drafts),
        (0,) * 512,
        (0,) * 512,
    )
    plan = Batch(9, 3, tuple(1 if draft else 9 for draft in drafts), columns).plan(division, 264)
    assert plan.counts == (57, 455)
    whole = [sum(drafts[slot] for slot, *_ in plan.ranges(worker)) for worker in range(264)]
    assert sum(whole) == 455 * 3
    assert max(whole) - min(whole) == 1
    draft_cost, tile_cost = 4 + UNIT_OVERHEAD, 18 / 16
    others = [plan.tiles(worker) - 4 * count for worker, count in enumerate(whole)]
    costs = [draft_cost * count + tile_cost * tiles for count, tiles in zip(whole, others, strict=True)]
    assert max(costs) - min(costs) <= UNIT_OVERHEAD + 2 * tile_cost


def test_nothing_to_do(division: ctypes.CDLL) -> None:
    plan = Batch(4, 2, (0, 0), ((Phase.IDLE,) * 2, *((5,) * 2 for _ in range(7)))).plan(division, 7)
    assert len(plan.active_slots) == 0
    assert not plan.starts.any()
    assert not plan.whole_starts.any()
