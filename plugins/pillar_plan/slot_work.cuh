// What one slot has to do in a step, in the units that workers share: PillarPlan weighs it, PillarAttention does it.
// Plain C++ but for the markers, as is division.cuh: tests compile both for the CPU.
#pragma once

#include <cstdint>

#include "pillar_plan/params.h"

namespace sparsespec {

// KV tokens that a worker takes at a time.
constexpr int kTileTokens = 64;
// Query rows times heads of a GQA group that share a KV tile.
constexpr int kTileRows = 64;
// Time that a unit takes besides its tiles, in tiles: reading lengths, rotating queries, writing the output.
constexpr int kUnitOverhead = 6;
// Time of a verified tile that is scored on the way, in tiles that are not.
constexpr int kScoredTile = 2;
// Units that cost no more stay whole, where a worker has two of them or more: to put parts together costs about
// kUnitOverhead, and an uneven share half a unit.
constexpr int kSmallUnit = 3 * kUnitOverhead;

// The rows of a slot are its body, then its block. A unit is one KV head and either the whole block, whose row tiles
// one worker passes over one after another so that it alone writes the block's scores; or one row tile of the body.
struct SlotWork {
    int slot;
    int row_start;       // the slot's first row in qkv
    int num_rows;        // body_rows + block_rows
    int body_rows;       // prompt rows that are not scored
    int block_rows;      // rows to verify or to score, or the one row of a draft
    int score_rows;      // the last so many rows are scored
    int first_position;  // of the first row: from here on tokens are the step's own
    int list_len;        // a draft's list: pillars that stay and move, lookups, recent tokens; 0 for other phases
    int num_keys;        // tokens that the last row reads
    bool drafts;
    bool verifies;
};

__host__ __device__ inline SlotWork slot_work(const StepLengths& step, int slot) {
    SlotWork work{};
    work.slot = slot;
    work.row_start = step.row_start[slot];
    const int phase = step.phase[slot];
    const bool idle = phase == static_cast<int>(Phase::kIdle);
    const int num_rows = step.row_start[slot + 1] - work.row_start;
    work.num_rows = idle || num_rows < 0 ? 0 : num_rows;
    work.drafts = phase == static_cast<int>(Phase::kDraft);
    work.verifies = phase == static_cast<int>(Phase::kVerify);
    const int score_rows = step.score_rows[slot] < work.num_rows ? step.score_rows[slot] : work.num_rows;
    work.score_rows = work.drafts ? 0 : score_rows;
    work.block_rows = work.drafts || work.verifies ? work.num_rows : work.score_rows;
    work.body_rows = work.num_rows - work.block_rows;
    work.first_position = step.kv_len[slot] + step.draft_index[slot];
    work.num_keys = work.first_position + work.num_rows;
    if (work.drafts) {
        const int chosen = step.num_staying[slot] + step.num_moving[slot] + step.num_lookups[slot];
        const int list_len = chosen + work.num_keys - step.recent_start[slot];
        work.list_len = list_len > 0 ? list_len : 0;
        work.num_keys = work.list_len;
    }
    return work;
}

// Whole rows of the slot that fit a row tile.
__host__ __device__ inline int rows_per_tile(int group) {
    return kTileRows / group;
}

__host__ __device__ inline int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

// A slot's units: first a block unit for each KV head, if there is a block; then, KV head by KV head, its body's row
// tiles.
struct SlotUnits {
    int num_kv_heads;
    int block_tiles;  // row tiles of the block
    int body_tiles;
    int kv_tiles;
    int block_tile_cost;  // of one KV tile, for all row tiles of the block

    __host__ __device__ SlotUnits(const SlotWork& work, int num_kv_heads, int group)
        : num_kv_heads(num_kv_heads),
          block_tiles(ceil_div(work.block_rows, rows_per_tile(group))),
          body_tiles(ceil_div(work.body_rows, rows_per_tile(group))),
          kv_tiles(ceil_div(work.num_keys, kTileTokens)),
          block_tile_cost(block_tiles * (work.verifies && work.score_rows > 0 ? kScoredTile : 1)) {}

    __host__ __device__ int num_block_units() const { return block_tiles > 0 ? num_kv_heads : 0; }
    __host__ __device__ int num_units() const { return num_block_units() + num_kv_heads * body_tiles; }
    __host__ __device__ bool is_block(int unit) const { return unit < num_block_units(); }
    // Of one of a unit's KV tiles.
    __host__ __device__ int64_t tile_cost(int unit) const { return is_block(unit) ? block_tile_cost : 1; }
    __host__ __device__ int64_t block_cost() const { return kUnitOverhead + int64_t{kv_tiles} * block_tile_cost; }
    __host__ __device__ int64_t body_cost() const { return kUnitOverhead + int64_t{kv_tiles}; }
    __host__ __device__ int64_t cost() const {
        return num_block_units() * block_cost() + int64_t{num_kv_heads} * body_tiles * body_cost();
    }
};

}  // namespace sparsespec
