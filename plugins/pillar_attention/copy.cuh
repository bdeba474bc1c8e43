// The copier: a warp that brings the keys and values that the scout found to the stages, tile after tile.
#pragma once

#include "pillar_attention/worker.cuh"

namespace sparsespec {

// What fills a stage: every lane's copies, and what every lane wrote.
constexpr int kCopyArrivals = 32 + 32;

// How the lanes share a key of kBytes: 16 bytes each, for kRows keys at once. Eight keys take kParts copies; then the
// places in a stage repeat. A lane has kParts keys that follow each other.
template <int kBytes>
struct CopyLanes {
    static constexpr int kChunks = kBytes / 16;
    static constexpr int kRows = kChunks > 8 ? 2 : kChunks > 4 ? 4 : 8;
    static constexpr int kParts = 8 / kRows;
};

// Starts the copies of the keys to a stage, or of their values, which lie `offset` bytes after them. Those of masked
// keys become zeros, so that no NaN of theirs spreads.
template <bool kMasks, typename Kind>
__device__ __forceinline__ void start_copies(const Worker<Kind>& worker, const TileKeys& keys, int64_t offset,
                                             int stage, uint64_t policy) {
    constexpr bool kOnce = Kind::kWay == Way::kNarrow;  // row tiles of prompts come back to the same keys
    using Lanes = CopyLanes<Kind::kKeyBytes>;
    using Layout = typename Kind::StageLayout;
    const int lane_row = worker.lane / Lanes::kChunks, chunk = worker.lane % Lanes::kChunks;
    if (lane_row >= Lanes::kRows) {
        return;
    }
    const char* pool = static_cast<const char*>(worker.params.kv_pool) + offset + chunk * 16;
    const uint32_t stage_at = shared_address(worker.stage(stage));
    const int first_key = lane_row * Lanes::kParts;
    const uint64_t unmasked = keys.unmasked;
#pragma unroll(Kind::kFp8 || Kind::kWay == Way::kWide ? 4 : 2)
    for (int first = 0; first < kTileTokens; first += 8) {
        uint32_t rows[Lanes::kParts];
#pragma unroll
        for (int part = 0; part < Lanes::kParts; ++part) {
            rows[part] = keys.row[first + first_key + part];
        }
#pragma unroll
        for (int part = 0; part < Lanes::kParts; ++part) {
            const bool reads = !kMasks || (unmasked >> (first + first_key + part) & 1) != 0;
            const uint32_t target =
                stage_at + first * (Layout::kEightRows / 8) + Layout::offset_in_eight(first_key + part, chunk);
            copy_async_16<kOnce>(target, pool + uint64_t{rows[part]} * Kind::kKeyBytes, reads, policy);
        }
    }
}

constexpr int kMostPages = kTileTokens / 16;  // of a tile

// Whether the copy engine copies whole pages. To narrow workers it gains nothing, and drafts beside it wait longer for
// their lists and pages.
template <typename Kind>
constexpr bool kCopiesBoxes = kHasWgmma && Kind::kWay == Way::kWide && !Kind::kFp8;

// The same for a tile of whole pages: a box for each page. The copy engine does it, and leaves the ways of all other
// loads free. A box takes it 100 cycles at the least.
template <typename Kind>
__device__ __forceinline__ void start_page_copies(const Worker<Kind>& worker, const TileKeys& keys, int row_offset,
                                                  int stage) {
    using Layout = typename Kind::StageLayout;
    uint64_t* full = &worker.shared.pipeline.full[stage];
    const int page_size = worker.params.page_size;
    const uint32_t stage_at = shared_address(worker.stage(stage));
    if (worker.lane != 0) {
        return;  // lanes would take turns, at a hundred cycles each
    }
    barrier_arrive_for_bytes(full, tile_bytes(Kind::kHeadDim, 2));
    barrier_arrive_many(full, kCopyArrivals - 1);
    int rows[kMostPages];
#pragma unroll
    for (int page = 0; page < kMostPages; ++page) {
        rows[page] = static_cast<int>(keys.row[page * page_size % kTileTokens]) + row_offset;
    }
#pragma unroll
    for (int page = 0; page < kMostPages; ++page) {
        if (page * page_size < kTileTokens) {
            copy_box(stage_at + page * page_size / 8 * Layout::kEightRows, worker.page_map, rows[page] / 8, full);
        }
    }
}

// Fills the next stage, with the tile's keys or its values, which lie `row_offset` rows further on.
template <typename Kind>
__device__ __forceinline__ void fill_stage(const Worker<Kind>& worker, const TileKeys& keys, int row_offset,
                                           RingCursor& stages, uint64_t policy) {
    auto& pipeline = worker.shared.pipeline;
    barrier_wait(&pipeline.empty[stages.place], stages.parity ^ 1);
    if (worker.lane == 0) {
        pipeline.unmasked[stages.place] = keys.unmasked;
    }
    __syncwarp();
    if (kCopiesBoxes<Kind> && keys.whole_pages) {
        start_page_copies(worker, keys, row_offset, stages.place);
    } else {
        const int64_t offset = int64_t{row_offset} * Kind::kKeyBytes;
        if (keys.unmasked == ~uint64_t{0}) {
            start_copies<false>(worker, keys, offset, stages.place, policy);
        } else {
            start_copies<true>(worker, keys, offset, stages.place, policy);
        }
        copy_async_arrive(&pipeline.full[stages.place]);
        barrier_arrive(&pipeline.full[stages.place]);
    }
    stages.advance(worker.num_stages);
}

// The copier's side of the whole launch.
template <typename Kind>
__device__ __forceinline__ void run_copier(const Worker<Kind>& worker) {
    auto& pipeline = worker.shared.pipeline;
    const int to_values = worker.params.num_kv_heads * worker.params.page_size;
    const uint64_t policy = read_once_policy();
    RingCursor found, stages;
    bool has_waited = false;  // for the step's own tokens
    while (true) {
        barrier_wait(&pipeline.keys_full[found.place], found.parity);
        const TileKeys& keys = worker.shared.keys[found.place];
        if (keys.ends) {
            break;
        }
        if (keys.new_keys && !has_waited) {
            wait_for_launch_before();
            has_waited = true;
        }
#pragma unroll 1
        for (int half = 0; half < (keys.values ? 2 : 1); ++half) {
            fill_stage(worker, keys, half * to_values, stages, policy);
        }
        barrier_arrive(&pipeline.keys_empty[found.place]);
        found.advance(Kind::kTilesAhead);
    }
    wait_for_launch_before();  // whatever was to do: who waits for this launch waits for both
}

}  // namespace sparsespec
