// What one slot has to do in a step, in the units that workers share: PillarPlan weighs it, PillarAttention does it.
// Plain C++ but for the markers, as is division.cuh: tests compile both for the CPU.
#pragma once

#include <cstdint>

#include "pillar_plan/params.h"

namespace sparsespec {

// KV tokens that a worker takes at a time.
constexpr int kTileTokens = 64;

// What things cost, in a sixteenth of the time of a tile: a tile; one whose scores are made on the way; and what a unit
// takes besides its tiles, a block's or a row tile of a body.
constexpr int kTileCost = 16;
constexpr int kScoredTileCost = 18;
constexpr int kUnitOverhead = 24;
constexpr int kBodyOverhead = 104;
// Units that cost no more stay whole, where a worker has two of them or more: to put parts together costs more than an
// uneven share does.
constexpr int kSmallUnit = 16 * kTileCost;

__host__ __device__ inline bool stays_whole(int64_t unit_cost, int64_t share) {
    return unit_cost <= kSmallUnit && unit_cost * 2 <= share;
}

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

__host__ __device__ inline SlotWork slot_work(const SlotLengths& lengths, int slot) {
    SlotWork work{};
    work.slot = slot;
    work.row_start = lengths.row_start;
    const bool idle = lengths.phase == static_cast<int>(Phase::kIdle);
    const int num_rows = lengths.row_end - lengths.row_start;
    work.num_rows = idle || num_rows < 0 ? 0 : num_rows;
    work.drafts = lengths.phase == static_cast<int>(Phase::kDraft);
    work.verifies = lengths.phase == static_cast<int>(Phase::kVerify);
    const int score_rows = lengths.score_rows < work.num_rows ? lengths.score_rows : work.num_rows;
    work.score_rows = work.drafts ? 0 : score_rows;
    work.block_rows = work.drafts || work.verifies ? work.num_rows : work.score_rows;
    work.body_rows = work.num_rows - work.block_rows;
    work.first_position = lengths.kv_len + lengths.draft_index;
    work.num_keys = work.first_position + work.num_rows;
    if (work.drafts) {
        const int chosen = lengths.num_staying + lengths.num_moving + lengths.num_lookups;
        const int list_len = chosen + work.num_keys - lengths.recent_start;
        work.list_len = list_len > 0 ? list_len : 0;
        work.num_keys = work.list_len;
    }
    return work;
}

__host__ __device__ inline SlotLengths slot_lengths(const StepLengths& step, int slot) {
    return {step.row_start[slot],  step.row_start[slot + 1], step.phase[slot],        step.draft_index[slot],
            step.score_rows[slot], step.kv_len[slot],        step.recent_start[slot], step.num_staying[slot],
            step.num_moving[slot], step.num_lookups[slot]};
}

// Packed rows that a team of four warps takes.
constexpr int kTeamRows = 64;

// Whole rows of the slot that fit a row tile: whole rows of each team.
__host__ __device__ inline int rows_per_tile(int tile_rows, int group) {
    return tile_rows / kTeamRows * (kTeamRows / group);
}

__host__ __device__ inline int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

// Row tiles of some rows. A division takes a hundred cycles, and few slots need one.
__host__ __device__ inline int row_tiles(int rows, int rows_per_tile) {
    return rows > rows_per_tile ? ceil_div(rows, rows_per_tile) : rows > 0 ? 1 : 0;
}

// A slot's units: first a block unit for each KV head, if there is a block; then, KV head by KV head, its body's row
// tiles. Of these each reads a little more than the one before.
struct SlotUnits {
    int num_kv_heads;
    int block_tiles;  // row tiles of the block
    int body_tiles;
    int kv_tiles;          // of the block, or of the last row tile
    int block_tile_cost;   // of one KV tile, for all row tiles of the block
    int first_body_cost;   // of the body's first row tile
    int body_cost_growth;  // from one row tile to the next

    // `step`: rows of a row tile.
    __host__ __device__ SlotUnits(const SlotWork& work, int num_kv_heads, int step)
        : num_kv_heads(num_kv_heads),
          block_tiles(row_tiles(work.block_rows, step)),
          body_tiles(row_tiles(work.body_rows, step)),
          kv_tiles(ceil_div(work.num_keys, kTileTokens)),
          block_tile_cost(block_tiles * (work.verifies && work.score_rows > 0 ? kScoredTileCost : kTileCost)),
          first_body_cost(kBodyOverhead + (work.first_position + step) / (kTileTokens / kTileCost)),
          body_cost_growth(step / (kTileTokens / kTileCost)) {}

    __host__ __device__ int num_block_units() const { return block_tiles > 0 ? num_kv_heads : 0; }
    __host__ __device__ int num_units() const { return num_block_units() + num_kv_heads * body_tiles; }
    __host__ __device__ bool is_block(int unit) const { return unit < num_block_units(); }
    // Of one of a unit's KV tiles.
    __host__ __device__ int64_t tile_cost(int unit) const { return is_block(unit) ? block_tile_cost : kTileCost; }
    __host__ __device__ int64_t block_cost() const { return kUnitOverhead + int64_t{kv_tiles} * block_tile_cost; }
    // Of what is not its tiles.
    __host__ __device__ int overhead(int unit) const { return is_block(unit) ? kUnitOverhead : kBodyOverhead; }
    // Of the body's row tile.
    __host__ __device__ int64_t body_cost(int tile) const { return first_body_cost + int64_t{tile} * body_cost_growth; }
    // Of the body's first `tiles` row tiles of one KV head.
    __host__ __device__ int64_t body_cost_before(int tiles) const {
        return int64_t{tiles} * first_body_cost + int64_t{tiles} * (tiles - 1) / 2 * body_cost_growth;
    }
    // Of all units before one.
    __host__ __device__ int64_t cost_before(int unit) const {
        const int blocks = num_block_units();
        if (unit <= blocks) {
            return unit * block_cost();
        }
        const int heads = (unit - blocks) / body_tiles;
        return blocks * block_cost() + heads * body_cost_before(body_tiles) +
               body_cost_before(unit - blocks - heads * body_tiles);
    }
    __host__ __device__ int64_t cost() const {
        return num_block_units() * block_cost() + num_kv_heads * body_cost_before(body_tiles);
    }
    // Whether no unit is shared where a worker's whole part is `share`.
    __host__ __device__ bool stay_whole(int64_t share) const {
        const int64_t block = block_tiles > 0 ? block_cost() : 0, body = body_tiles > 0 ? body_cost(body_tiles - 1) : 0;
        return stays_whole(block > body ? block : body, share);
    }
};

}  // namespace sparsespec
