// How PillarAttention and PillarPlan divide rows into row tiles, and by the group, for tests on the CPU.
#include "pillar_attention/job.cuh"

namespace sparsespec {

extern "C" {

// quotients: [count] of 0, 1, ... by the group.
void divide_by_group(int32_t group, int32_t count, int32_t* quotients) {
    for (int32_t packed = 0; packed < count; ++packed) {
        quotients[packed] = static_cast<int32_t>(packed * group_inverse(group) >> 16);
    }
}

// tiles: [count] row tiles of 0, 1, ... rows.
void count_row_tiles(int32_t rows_per_tile, int32_t count, int32_t* tiles) {
    for (int32_t rows = 0; rows < count; ++rows) {
        tiles[rows] = row_tiles(rows, rows_per_tile);
    }
}

int32_t count_tile_rows(int32_t tile_rows, int32_t group) {
    return rows_per_tile(tile_rows, group);
}

}  // extern "C"

}  // namespace sparsespec
