// The copier: a warp that brings the keys and values that the scout found to the stages, tile after tile.
#pragma once

#include "pillar_attention/worker.cuh"

namespace sparsespec {

// What fills a stage: every lane's copies, and what the warp wrote.
constexpr int kCopyArrivals = 32 + 1;

// How the lanes share a row of head_dim numbers: 16 bytes each, for kRows rows at once. Eight keys take kParts copies;
// then the places in a stage repeat. A lane has kParts keys that follow each other.
template <int kHeadDim>
struct CopyLanes {
    static constexpr int kChunks = kHeadDim / 8;
    static constexpr int kRows = 32 / kChunks;
    static constexpr int kParts = 8 / kRows;
    static constexpr int kRowBytes = kHeadDim * 2;
};

// Starts the copies of the keys to a stage, or of their values, which lie `offset` bytes after them. Those of masked
// keys become zeros, so that no NaN of theirs spreads.
template <bool kMasks, typename Kind>
__device__ __forceinline__ void start_copies(const Worker<Kind>& worker, const TileKeys& keys, int64_t offset,
                                             int stage) {
    using Lanes = CopyLanes<Kind::kHeadDim>;
    using Layout = TileLayout<Kind::kHeadDim>;
    const int lane_row = worker.lane / Lanes::kChunks, chunk = worker.lane % Lanes::kChunks;
    if (lane_row >= Lanes::kRows) {
        return;
    }
    const char* pool = static_cast<const char*>(worker.params.kv_pool) + offset + chunk * 16;
    const uint32_t stage_at = shared_address(worker.stage(stage));
    const int first_key = lane_row * Lanes::kParts;
    const uint64_t unmasked = keys.unmasked;
#pragma unroll 2
    for (int first = 0; first < kTileTokens; first += 8) {
        uint32_t rows[Lanes::kParts];
#pragma unroll
        for (int part = 0; part < Lanes::kParts; ++part) {
            rows[part] = keys.row[first + first_key + part];
        }
#pragma unroll
        for (int part = 0; part < Lanes::kParts; ++part) {
            const bool reads = !kMasks || (unmasked >> (first + first_key + part) & 1) != 0;
            const uint32_t target = stage_at + first * Layout::kRowBytes + Layout::offset(first_key + part, chunk);
            copy_async_16(target, pool + uint64_t{rows[part]} * Lanes::kRowBytes, reads);
        }
    }
}

// Whether the copy engine copies whole pages. To narrow workers it gains nothing, and drafts beside it wait longer for
// their lists and pages.
template <typename Kind>
constexpr bool kCopiesBoxes = kHasWgmma && Kind::kWay == Way::kWide;

// The same for a tile of whole pages: a box for each page and block of columns. The copy engine does it, and leaves the
// ways of all other loads free.
template <typename Kind>
__device__ __forceinline__ void start_page_copies(const Worker<Kind>& worker, const TileKeys& keys, int row_offset,
                                                  int stage) {
    using Layout = TileLayout<Kind::kHeadDim>;
    constexpr int kBlocks = Kind::kHeadDim * 2 / Layout::kRowBytes;
    uint64_t* full = &worker.shared.pipeline.full[stage];
    const int page_size = worker.params.page_size, page = worker.lane / kBlocks, block = worker.lane % kBlocks;
    if (worker.lane == 0) {
        barrier_arrive_for_bytes(full, stage_bytes(Kind::kHeadDim));
        barrier_arrive_many(full, kCopyArrivals - 1);
    }
    __syncwarp();
    if (page * page_size < kTileTokens) {
        const int first = page * page_size;
        copy_box(shared_address(worker.stage(stage)) + block * Layout::kBlockBytes + first * Layout::kRowBytes,
                 worker.page_map, block * Layout::kRowBytes / 2, static_cast<int>(keys.row[first]) + row_offset, full);
    }
}

// Fills the next stage, with the tile's keys or its values, which lie `row_offset` rows further on.
template <typename Kind>
__device__ __forceinline__ void fill_stage(const Worker<Kind>& worker, const TileKeys& keys, int row_offset,
                                           RingCursor& stages) {
    Pipeline& pipeline = worker.shared.pipeline;
    barrier_wait(&pipeline.empty[stages.place], stages.parity ^ 1);
    if (worker.lane == 0) {
        pipeline.unmasked[stages.place] = keys.unmasked;
    }
    __syncwarp();
    if (kCopiesBoxes<Kind> && keys.whole_pages) {
        start_page_copies(worker, keys, row_offset, stages.place);
    } else {
        const int64_t offset = int64_t{row_offset} * CopyLanes<Kind::kHeadDim>::kRowBytes;
        if (keys.unmasked == ~uint64_t{0}) {
            start_copies<false>(worker, keys, offset, stages.place);
        } else {
            start_copies<true>(worker, keys, offset, stages.place);
        }
        copy_async_arrive(&pipeline.full[stages.place]);
        warp_arrive(&pipeline.full[stages.place], worker.lane);
    }
    stages.advance(worker.num_stages);
}

// The copier's side of the whole launch.
template <typename Kind>
__device__ __forceinline__ void run_copier(const Worker<Kind>& worker) {
    Pipeline& pipeline = worker.shared.pipeline;
    const int to_values = worker.params.num_kv_heads * worker.params.page_size;
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
            fill_stage(worker, keys, half * to_values, stages);
        }
        warp_arrive(&pipeline.keys_empty[found.place], worker.lane);
        found.advance(kMaxTilesAhead);
    }
    wait_for_launch_before();  // whatever was to do: who waits for this launch waits for both
}

}  // namespace sparsespec
