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

// Fills the next stage, with the tile's keys or its values.
template <typename Kind>
__device__ __forceinline__ void fill_stage(const Worker<Kind>& worker, const TileKeys& keys, int64_t offset,
                                           RingCursor& stages) {
    Pipeline& pipeline = worker.shared.pipeline;
    barrier_wait(&pipeline.empty[stages.place], stages.parity ^ 1);
    __syncwarp();
    if (keys.unmasked == ~uint64_t{0}) {
        start_copies<false>(worker, keys, offset, stages.place);
    } else {
        start_copies<true>(worker, keys, offset, stages.place);
    }
    if (worker.lane == 0) {
        pipeline.unmasked[stages.place] = keys.unmasked;
    }
    copy_async_arrive(&pipeline.full[stages.place]);
    warp_arrive(&pipeline.full[stages.place], worker.lane);
    stages.advance(worker.num_stages);
}

// The copier's side of the whole launch.
template <typename Kind>
__device__ __forceinline__ void run_copier(const Worker<Kind>& worker) {
    Pipeline& pipeline = worker.shared.pipeline;
    const int64_t value_offset =
        int64_t{worker.params.num_kv_heads} * worker.params.page_size * CopyLanes<Kind::kHeadDim>::kRowBytes;
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
            fill_stage(worker, keys, half * value_offset, stages);
        }
        warp_arrive(&pipeline.keys_empty[found.place], worker.lane);
        found.advance(kMaxTilesAhead);
    }
    wait_for_launch_before();  // whatever was to do: who waits for this launch waits for both
}

}  // namespace sparsespec
