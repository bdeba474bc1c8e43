// What a worker is at: one row tile over a range of KV tiles. It lies in shared memory: all threads read the same,
// rarely, and registers are short.
#pragma once

#include <cstdint>

#include "pillar_attention/params.h"
#include "pillar_plan/slot_work.cuh"

namespace sparsespec {

// Divides packed rows by the group, in place of the division that takes a hundred cycles: m / group is
// m * inverse >> 16 for all m below 4096, since inverse * group exceeds 2^16 by less than 16.
__host__ __device__ constexpr uint32_t group_inverse(int group) {
    return 65535u / static_cast<uint32_t>(group) + 1;
}

// Whole rows of a slot that go through the matrix units together for one KV head, each with all heads of the group:
// packed row m is row m / group, head m % group.
struct RowTile {
    SlotWork work;
    int kv_head;
    int first_row;  // of the slot
    int num_rows;
    int group;
    uint32_t inverse;  // of the group, see group_inverse
    int num_keys;      // keys of its last row: tokens 0, 1, ... of the slot, or entries of a draft's list
    int first_new;     // from this key on keys are the step's own tokens

    __device__ __forceinline__ int packed_rows() const { return num_rows * group; }
    __device__ __forceinline__ int row(int packed) const { return static_cast<int>(packed * inverse >> 16); }
    __device__ __forceinline__ int position(int packed) const { return work.first_position + first_row + row(packed); }
    __device__ __forceinline__ int query_head(int packed) const {
        return kv_head * group + packed - row(packed) * group;
    }
    __device__ __forceinline__ int qkv_row(int packed) const { return work.row_start + first_row + row(packed); }
    // Place among the slot's scored rows; negative for rows that are not scored.
    __device__ __forceinline__ int scored_row(int row) const {
        return first_row + row - (work.num_rows - work.score_rows);
    }
    // The last key that a packed row may read.
    __device__ __forceinline__ int last_key(int packed) const { return work.drafts ? num_keys - 1 : position(packed); }
};

__device__ __forceinline__ RowTile row_tile(const SlotWork& work, int kv_head, int first_row, int num_rows, int group) {
    return {work,
            kv_head,
            first_row,
            num_rows,
            group,
            group_inverse(group),
            work.drafts ? work.list_len : work.first_position + first_row + num_rows,
            work.drafts ? work.list_len - 1 : work.first_position};
}

// Rows of a unit.
struct UnitRows {
    int kv_head;
    int first;  // of the slot
    int count;
};

// `step`: rows of a row tile.
__device__ __forceinline__ UnitRows unit_rows(const SlotWork& work, const SlotUnits& units, int unit, int step) {
    if (units.is_block(unit)) {
        return {unit, work.body_rows, work.block_rows};
    }
    unit -= units.num_block_units();
    const int first = unit % units.body_tiles * step;
    return {unit / units.body_tiles, first, min(step, work.body_rows - first)};
}

// Whether the drafts of the same rows left log-sum-exps to score by.
__device__ __forceinline__ bool scores_by_drafts(const PillarAttentionParams& params, const SlotWork& work) {
    return work.verifies && work.num_rows > 1 && params.score_normalizer == ScoreNormalizer::kDraft;
}

// Tiles [begin, end) of KV tokens. Where begin > 0 or end < all, other workers do the rest of the unit.
struct TileRange {
    int begin;
    int end;
};

// What a pass over the KV tiles is for.
struct Pass {
    bool attends;  // else it computes scores only, by log-sum-exps that are known
    bool scores;
};

// A draft's list for one KV head: pillars that stay, pillars that move, lookups, then the recent tokens up to its own.
struct DraftList {
    const int32_t* pillars;
    const int32_t* lookups;
    int num_staying;
    int num_moving;
    int num_lookups;
    int recent_start;
    int shift;  // of the pillars that move
};

// Where a block's scores go.
struct ScoreTarget {
    int64_t offset;  // element of position 0 in plane 0
    int64_t plane_stride;
    int last_position;  // nothing is written beyond
    float scale;        // from sums of weights to means of probabilities
    bool adds;          // to what an earlier row tile of the block left
};

// One worker's part of a unit that it shares, in the workspace.
struct Partial {
    float* output;  // [partial_rows, head_dim], times the sum
    float* base;    // [partial_rows], in log2
    float* sum;     // [partial_rows]
    float* halo;    // [kReach] diagonals before the range
};

// What the consumers do when a job is done.
struct Finish {
    bool shares;      // the unit with other workers
    bool keeps_lse;   // its scores are made by its log-sum-exps, which are to lie in shared memory
    bool may_repeat;  // the unit's last row tile: its scores are still to come, if that completes the unit
    int first_row;    // of all of the unit's rows, also where they are several row tiles
    int num_rows;
    WorkerStart unit;  // a start within the unit, if it is shared
};

struct Job {
    RowTile tile;
    TileRange range;
    Pass pass;
    bool ends;  // there is none, and no more to come
    DraftList list;
    ScoreTarget target;
    Partial part;
    Finish finish;
};

// A worker's part of one of the plan's lists.
struct Stretch {
    WorkerStart start;
    SlotLengths lengths;  // of the slot that it starts in
    WorkerStart end;      // where the next worker starts
};

// Where the guide is. It lies in shared memory too: registers are short, and local memory is slow while copies go on.
struct GuideState {
    Stretch stretches[kUnitLists];
    SlotLengths lengths;
    SlotWork work;
    int score_index;
};

// Where the keys of a tile lie in the pool, from the scout to the copier.
struct alignas(16) TileKeys {
    uint32_t row[kTileTokens];  // of head_dim numbers, in the pool; any that there is where nobody reads the key
    uint64_t unmasked;          // a bit for each key that any row may read
    bool values;                // whether there is a use for them
    bool new_keys;              // whether there are tokens of the step's own
    bool whole_pages;           // whether the tile is of whole pages, each from its first token on
    bool ends;                  // there is no tile, and no more to come
};

// In place of a position.
constexpr int kMasked = -1;

}  // namespace sparsespec
