"""How many workers PillarAttention has on a device, with how much room, and which way a step goes; on the CPU."""

from __future__ import annotations

import ctypes
from dataclasses import astuple, dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from host_library import host_library, pointer

NARROW, WIDE = 0, 1
MAX_ROOM = 12
KB = 1024


@dataclass(frozen=True)
class Device:
    """In the order of occupancy.h."""

    processors: int
    memory_per_processor: int
    memory_per_block: int
    reserved_memory: int
    major: int


H200 = Device(132, 228 * KB, 227 * KB, KB, 9)
A100 = Device(108, 164 * KB, 163 * KB, KB, 8)
L4 = Device(58, 100 * KB, 99 * KB, KB, 8)
T4 = Device(40, 64 * KB, 64 * KB, 0, 7)
HUGE = Device(400, 228 * KB, 227 * KB, KB, 9)


@dataclass(frozen=True)
class Step:
    """In the order of occupancy_on_host.cu. As it stands, 96 verifications of a group of 4 that leave no scores."""

    num_heads: int = 32
    num_kv_heads: int = 8
    num_rows: int = 96 * 9
    batch: int = 96
    max_draft_len: int = 8
    scores: int = 0


@pytest.fixture(scope="module")
def occupancy(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = host_library("occupancy_on_host.cu", tmp_path_factory.mktemp("occupancy"))
    library.fill.restype = ctypes.c_bool
    return library


def ints(*numbers: int) -> NDArray[np.int32]:
    return np.array(numbers, np.int32)


def fill(occupancy: ctypes.CDLL, head_dim: int, way: int, device: Device) -> tuple[int, int] | None:
    """Workers and room."""
    described, filled = ints(*astuple(device)), ints(0, 0)
    if not occupancy.fill(head_dim, way, pointer(described), pointer(filled)):
        return None
    workers, room = filled.tolist()
    return workers, room


def way_of(occupancy: ctypes.CDLL, step: Step, major: int = 9) -> int:
    numbers = ints(*astuple(step))
    way: int = occupancy.way_of(pointer(numbers), major)
    return way


@pytest.mark.parametrize(("head_dim", "room"), [(64, 12), (96, 8), (128, 6)])
def test_hopper_has_two_narrow_workers_or_a_wide_one(occupancy: ctypes.CDLL, head_dim: int, room: int) -> None:
    assert fill(occupancy, head_dim, NARROW, H200) == (264, room)
    assert fill(occupancy, head_dim, WIDE, H200) == (132, MAX_ROOM)


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("way", [NARROW, WIDE])
@pytest.mark.parametrize("device", [H200, A100, L4])
def test_workers_fit_and_no_more_room_would(occupancy: ctypes.CDLL, head_dim: int, way: int, device: Device) -> None:
    found = fill(occupancy, head_dim, way, device)
    if found is None:
        assert occupancy.bytes_of_worker(head_dim, way, 4) > device.memory_per_block
        return
    workers, room = found
    each = workers // device.processors

    def fits(room: int) -> bool:
        size = occupancy.bytes_of_worker(head_dim, way, room)
        return size <= device.memory_per_block and each * (size + KB) <= device.memory_per_processor

    assert workers == each * device.processors
    assert fits(room)
    assert room == MAX_ROOM or not fits(room + 1)


def test_a_device_without_room_is_refused(occupancy: ctypes.CDLL) -> None:
    assert fill(occupancy, 128, NARROW, T4) is None
    assert fill(occupancy, 80, NARROW, H200) is None


def test_no_more_workers_than_the_plan_has_places(occupancy: ctypes.CDLL) -> None:
    assert fill(occupancy, 64, NARROW, HUGE) == (512, 12)
    assert fill(occupancy, 64, WIDE, HUGE) == (256, 12)


@pytest.mark.parametrize(
    ("step", "way"),
    [
        (Step(), NARROW),
        (Step(scores=1), NARROW),
        (Step(num_heads=56), NARROW),  # nine rows of 7 heads fit 64 packed rows
        (Step(num_heads=64), WIDE),  # of 8 do not
        (Step(num_heads=64, num_rows=96), NARROW),  # all draft
        (Step(num_heads=64, num_rows=96, scores=1), WIDE),
        (Step(num_rows=2048, batch=1), WIDE),  # a prompt
        (Step(num_rows=1023, batch=1), NARROW),
        (Step(num_rows=96 * 9 + 200), WIDE),  # more rows than drafts and verifications have, and more than 1024
        (Step(num_rows=512 * 9, batch=512), NARROW),
    ],
)
def test_ways(occupancy: ctypes.CDLL, step: Step, way: int) -> None:
    assert way_of(occupancy, step) == way


def test_only_hopper_goes_the_wide_way(occupancy: ctypes.CDLL) -> None:
    assert [way_of(occupancy, Step(num_heads=64), major) for major in (8, 9, 10)] == [NARROW, WIDE, NARROW]
