// The copier: a warp that brings the keys and values that the scout found to the stages, tile after tile.
#pragma once

#include "pillar_attention/worker.cuh"

namespace sparsespec {

// What fills a stage: every lane's copies, and what every lane wrote.
constexpr int kCopyArrivals = 32 + 32;

// How the lanes share keys of kBytes: a lane copies 16 bytes of each of kParts keys that follow each other, and all
// together a group of keys. Then the places in a stage repeat.
template <int kBytes>
struct CopyLanes {
    static constexpr int kChunks = kBytes / 16;
    static constexpr int kRows = kChunks > 8 ? 2 : kChunks > 4 ? 4 : 8;
    static constexpr int kParts = 4;
    static constexpr int kGroup = kRows * kParts;
    static constexpr int kGroups = kTileTokens / kGroup;
};

// A lane's part in all copies.
template <typename Kind>
struct LaneCopies {
    using Lanes = CopyLanes<Kind::kKeyBytes>;
    using Layout = typename Kind::StageLayout;

    int row;                         // of the lanes; kRows where the lane copies nothing
    uint32_t target[Lanes::kParts];  // of the first group's keys, in the first stage
    uint64_t pool;                   // of its 16 bytes of the pool's first row

    __device__ __forceinline__ explicit LaneCopies(const Worker<Kind>& worker) {
        const int chunk = worker.lane % Lanes::kChunks, first_key = worker.lane / Lanes::kChunks * Lanes::kParts;
        row = worker.lane / Lanes::kChunks;
        pool = reinterpret_cast<uint64_t>(worker.params.kv_pool) + chunk * 16;
#pragma unroll
        for (int part = 0; part < Lanes::kParts; ++part) {
            target[part] = shared_address(worker.stage(0)) + Layout::offset(first_key + part, chunk);
            asm volatile("" : "+r"(target[part]));  // else its parts take twice as many registers
        }
    }
};

// Where the lane's keys of all groups lie. A load from shared memory waits behind the copies that have been started,
// some 200 cycles: so each is made two groups ahead.
template <typename Kind>
struct LaneRows {
    using Lanes = CopyLanes<Kind::kKeyBytes>;
    static constexpr int kAhead = 2;

    const uint4* from;
    uint4 rows[kAhead + 1];

    __device__ __forceinline__ LaneRows(const TileKeys& keys, int row)
        : from(reinterpret_cast<const uint4*>(keys.row) + min(row, Lanes::kRows - 1)) {
#pragma unroll
        for (int group = 0; group < kAhead; ++group) {
            read(group);
        }
    }

    __device__ __forceinline__ void read(int group) {
        if (group < Lanes::kGroups) {
            rows[group % (kAhead + 1)] = from[group * Lanes::kRows];
        }
    }

    __device__ __forceinline__ uint32_t row(int group, int part) const {
        const uint4& four = rows[group % (kAhead + 1)];
        return part == 0 ? four.x : part == 1 ? four.y : part == 2 ? four.z : four.w;
    }
};

// Starts the copies of the keys to a stage, or of their values, which lie `offset` bytes after them. Those of masked
// keys become zeros, so that no NaN of theirs spreads.
template <bool kMasks, typename Kind>
__device__ __forceinline__ void start_copies(const LaneCopies<Kind>& lane, LaneRows<Kind>& rows, uint64_t unmasked,
                                             int64_t offset, int stage, uint64_t policy) {
    constexpr bool kOnce = Kind::kWay == Way::kNarrow;  // row tiles of prompts come back to the same keys
    using Layout = typename Kind::StageLayout;
    using Lanes = CopyLanes<Kind::kKeyBytes>;
    if (lane.row >= Lanes::kRows) {
        return;
    }
    const uint64_t lane_unmasked = unmasked >> lane.row * Lanes::kParts;
    const uint64_t pool = lane.pool + offset;
    uint32_t targets[Lanes::kParts];
#pragma unroll
    for (int part = 0; part < Lanes::kParts; ++part) {
        targets[part] = multiply_add(stage / Layout::kTogether, Layout::kTogetherBytes,
                                     lane.target[part] + stage % Layout::kTogether * Layout::kNextBytes);
    }
#pragma unroll
    for (int group = 0; group < Lanes::kGroups; ++group) {
        rows.read(group + LaneRows<Kind>::kAhead);
#pragma unroll
        for (int part = 0; part < Lanes::kParts; ++part) {
            const int key = group * Lanes::kGroup + part;
            const uint64_t from = pool + uint64_t{rows.row(group, part)} * Kind::kKeyBytes;
            copy_async_16<kOnce>(targets[part] + key / 8 * Layout::kEightRows, reinterpret_cast<const void*>(from),
                                 !kMasks || (lane_unmasked >> key & 1) != 0, policy);
        }
    }
}

constexpr int kMostPages = kTileTokens / 16;  // of a tile

// Whether the copy engine copies whole pages. To narrow workers it gains nothing, and drafts beside it wait longer for
// their lists and pages.
template <typename Kind>
constexpr bool kCopiesBoxes = kHasWgmma && Kind::kWay == Way::kWide && !Kind::kFp8;

// Fills the next two stages, with the keys and the values of a tile of whole pages: a box for each page. The copy
// engine does it, and leaves the ways of all other loads free. A box takes it 100 cycles and more. The keys'
// barrier stands for all of it: consumers wait for that one first.
template <typename Kind>
__device__ __forceinline__ void start_page_copies(const Worker<Kind>& worker, const TileKeys& keys,
                                                  RingCursor& stages) {
    using Layout = typename Kind::StageLayout;
    auto& pipeline = worker.shared.pipeline;
    const int page_size = worker.params.page_size, stage = stages.place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        barrier_wait(&pipeline.empty[stages.place], stages.parity ^ 1);
        stages.advance(worker.num_stages);
    }
    if (worker.lane != 0) {
        return;  // lanes would take turns, at a hundred cycles each
    }
    uint64_t* full = &pipeline.full[stage];
    const uint32_t stage_at = shared_address(worker.stage(stage));
    pipeline.unmasked[stage] = keys.unmasked;
    barrier_arrive_for_bytes(full, 2 * tile_bytes(Kind::kHeadDim, 2));
    barrier_arrive_many(full, kCopyArrivals - 1);
    barrier_arrive_many(full + 1, kCopyArrivals);
    int rows[kMostPages];
#pragma unroll
    for (int page = 0; page < kMostPages; ++page) {
        rows[page] = static_cast<int>(keys.row[page * page_size % kTileTokens]);
    }
#pragma unroll
    for (int page = 0; page < kMostPages; ++page) {
        if (page * page_size < kTileTokens) {
            copy_box(stage_at + page * page_size / 8 * Layout::kEightRows, worker.page_map, rows[page] / 8, full);
        }
    }
}

// Fills the next stage, with the tile's keys or, unless nobody reads them, its values, which lie `row_offset` rows
// further on.
template <typename Kind>
__device__ __forceinline__ void fill_stage(const Worker<Kind>& worker, const LaneCopies<Kind>& lane,
                                           const TileKeys& keys, int row_offset, RingCursor& stages, uint64_t policy) {
    auto& pipeline = worker.shared.pipeline;
    LaneRows<Kind> rows(keys, lane.row);
    const uint64_t unmasked = keys.unmasked;
    barrier_wait(&pipeline.empty[stages.place], stages.parity ^ 1);
    if (worker.lane == 0) {
        pipeline.unmasked[stages.place] = unmasked;
    }
    __syncwarp();
    const int64_t offset = int64_t{row_offset} * Kind::kKeyBytes;
    if (row_offset > 0 && !keys.values) {
        // nobody reads the stage
    } else if (unmasked == ~uint64_t{0}) {
        start_copies<false>(lane, rows, unmasked, offset, stages.place, policy);
    } else {
        start_copies<true>(lane, rows, unmasked, offset, stages.place, policy);
    }
    copy_async_arrive(&pipeline.full[stages.place]);
    barrier_arrive(&pipeline.full[stages.place]);
    stages.advance(worker.num_stages);
}

// The copier's side of the whole launch.
template <typename Kind>
__device__ __forceinline__ void run_copier(const Worker<Kind>& worker) {
    auto& pipeline = worker.shared.pipeline;
    const int to_values = worker.params.num_kv_heads * worker.params.page_size;
    const LaneCopies<Kind> lane(worker);
    const uint64_t policy = read_once_policy();
    RingCursor found, stages;
    bool has_waited = false;  // for the launch before, which makes the step's own tokens
    while (true) {
        barrier_wait(&pipeline.keys_full[found.place], found.parity);
        const TileKeys& keys = worker.shared.keys[found.place];
        if (keys.ends) {
            break;
        }
        if (!has_waited && keys.new_keys) {
            wait_for_launch_before();
            has_waited = true;
        }
        if (kCopiesBoxes<Kind> && keys.whole_pages) {
            start_page_copies(worker, keys, stages);
        } else {
#pragma unroll 1
            for (int half = 0; half < 2; ++half) {
                fill_stage(worker, lane, keys, half * to_values, stages, policy);
            }
        }
        barrier_arrive(&pipeline.keys_empty[found.place]);
        found.advance(Kind::kTilesAhead);
    }
    wait_for_launch_before();  // whatever was to do: who waits for this launch waits for both
}

}  // namespace sparsespec
