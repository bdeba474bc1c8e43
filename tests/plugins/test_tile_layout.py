"""Where PillarAttention has keys and values in shared memory, compiled for the CPU."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray

from host_library import host_library, pointer

TOKENS = 64
STAGES = 4  # of two tiles
PAGE = 16  # tokens of the smallest page
KEY_BYTES = (64, 96, 128, 192, 256)  # of head_dim 64, 96 and 128 in 8 and in 16 bits


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return host_library("tile_layout_on_host.cu", tmp_path_factory.mktemp("layout"))


def offsets_of(layout: ctypes.CDLL, key_bytes: int, wide: bool) -> NDArray[np.int32]:
    """[STAGES, TOKENS, key_bytes / 16] bytes of each 16-byte chunk: of a tile's keys, its values, the next one's."""
    offsets = np.full((STAGES, TOKENS, key_bytes // 16), -1, np.int32)
    layout.tile_offsets.restype = ctypes.c_bool
    assert layout.tile_offsets(key_bytes, ctypes.c_bool(wide), pointer(offsets))
    return offsets


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("key_bytes", KEY_BYTES)
def test_every_chunk_has_a_place_of_its_own(layout: ctypes.CDLL, key_bytes: int, wide: bool) -> None:
    offsets = offsets_of(layout, key_bytes, wide)
    assert sorted(offsets.flatten().tolist()) == list(range(0, STAGES * TOKENS * key_bytes, 16))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("key_bytes", KEY_BYTES)
def test_eight_rows_are_in_different_banks(layout: ctypes.CDLL, key_bytes: int, wide: bool) -> None:
    """Matrix loads touch one chunk of eight rows at a time: together all 32 banks of 4 bytes."""
    banks = offsets_of(layout, key_bytes, wide).reshape(STAGES * TOKENS // 8, 8, -1) // 16 % 8
    assert (np.sort(banks, axis=1) == np.arange(8)[None, :, None]).all()


@pytest.mark.parametrize("key_bytes", KEY_BYTES)
def test_a_wide_workers_page_is_in_one_piece(layout: ctypes.CDLL, key_bytes: int) -> None:
    """The copy engine writes a page's keys and its values as one box."""
    tiles = offsets_of(layout, key_bytes, True).reshape(STAGES // 2, 2, TOKENS // PAGE, -1)
    pages = tiles.transpose(0, 2, 1, 3).reshape(STAGES // 2 * TOKENS // PAGE, -1)
    assert (pages // (2 * PAGE * key_bytes) == np.arange(len(pages))[:, None]).all()
