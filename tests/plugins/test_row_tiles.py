"""How PillarAttention and PillarPlan divide rows into row tiles, and by the group, compiled for the CPU."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from host_library import host_library, pointer
from sparsespec.plugins.limits import MAX_GROUP

PACKED_ROWS = 4096  # that group_inverse promises to be right below
TEAM_ROWS = 64  # packed rows that a team takes


@pytest.fixture(scope="module")
def row_tiles(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return host_library("row_tile_on_host.cu", tmp_path_factory.mktemp("row_tiles"))


@pytest.mark.parametrize("group", range(1, MAX_GROUP + 1))
def test_rows_of_a_group(row_tiles: ctypes.CDLL, group: int) -> None:
    quotients = np.empty(PACKED_ROWS, np.int32)
    row_tiles.divide_by_group(group, PACKED_ROWS, pointer(quotients))
    assert (quotients == np.arange(PACKED_ROWS) // group).all()


@pytest.mark.parametrize("rows_per_tile", [1, 4, 7, 64, 128])
def test_row_tiles(row_tiles: ctypes.CDLL, rows_per_tile: int) -> None:
    tiles = np.empty(1000, np.int32)
    row_tiles.count_row_tiles(rows_per_tile, 1000, pointer(tiles))
    assert (tiles == -(-np.arange(1000) // rows_per_tile)).all()


@pytest.mark.parametrize("teams", [1, 2])
@pytest.mark.parametrize("group", range(1, MAX_GROUP + 1))
def test_teams_share_a_row_tile_evenly(row_tiles: ctypes.CDLL, group: int, teams: int) -> None:
    """The more numerous half of a row tile's whole rows fits a team, and one row more of each would not."""
    rows = row_tiles.count_tile_rows(teams * TEAM_ROWS, group)
    assert -(-rows // teams) * group <= TEAM_ROWS < (rows // teams + 1) * group
