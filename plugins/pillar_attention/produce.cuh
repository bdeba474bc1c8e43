// The producer: one warp that brings the keys and values of tile after tile to the stages, ahead of the consumers and across
// the ends of jobs.
#pragma once

#include "pillar_attention/append.cuh"

namespace sparsespec {

// Keys of a tile that one lane looks up.
constexpr int kLaneKeys = kTileTokens / 32;

// Where a tile's keys lie, two steps ahead: a position may have to be read from a list, and its page from the page table.
// Neither load is waited for while the tile before is on its way.
template <typename T, int kHeadDim>
struct KeySearch {
    const Worker<T, kHeadDim>& worker;
    int tile;                 // the next one
    int listed[kLaneKeys];    // of the tile after it
    int position[kLaneKeys];  // of the next tile
    int page[kLaneKeys];

    __device__ __forceinline__ KeySearch(const Worker<T, kHeadDim>& worker, int first) : worker(worker), tile(first) {
        load_list(first);
        resolve(first);
        load_list(first + 1);
    }

    __device__ __forceinline__ int key(int kv_tile, int index) const {
        return kv_tile * kTileTokens + index * 32 + worker.lane;
    }

    __device__ __forceinline__ void load_list(int kv_tile) {
#pragma unroll
        for (int index = 0; index < kLaneKeys; ++index) {
            listed[index] = load_listed(worker.job(), key(kv_tile, index));
        }
    }

    __device__ __forceinline__ void resolve(int kv_tile) {
#pragma unroll
        for (int index = 0; index < kLaneKeys; ++index) {
            position[index] = key_position(worker.job(), key(kv_tile, index), listed[index]);
            page[index] = load_page(worker, position[index]);
        }
    }

    // Where the lane's keys of the next tile begin in the pool, or kMasked.
    __device__ __forceinline__ void next(int64_t (&entries)[kLaneKeys]) {
#pragma unroll
        for (int index = 0; index < kLaneKeys; ++index) {
            entries[index] = entry_of(worker, position[index], page[index]);
        }
        ++tile;
        resolve(tile);
        load_list(tile + 1);
    }
};

// Starts the copies of a tile. Masked keys and values become zeros, so that no NaN of theirs spreads.
template <typename T, int kHeadDim>
__device__ __forceinline__ void start_copies(const Worker<T, kHeadDim>& worker, const int64_t (&entries)[kLaneKeys],
                                             int stage) {
    constexpr int kChunks = kHeadDim / 8;
    const bool values = worker.job().pass.attends;
    const T* pool = static_cast<const T*>(worker.params.kv_pool);
    const uint32_t keys_at = shared_address(worker.keys(stage)), values_at = shared_address(worker.values(stage));
    const int64_t to_value = value_offset<kHeadDim>(worker.params);
#pragma unroll
    for (int part = 0; part < kTileTokens * kChunks / 32; ++part) {
        const int index = part * 32 + worker.lane;
        const int row = index / kChunks, chunk = index % kChunks;
        const int64_t entry = __shfl_sync(0xffffffffu, entries[part * 32 / kChunks / 32], row % 32);
        const bool valid = entry >= 0;
        const T* source = pool + (valid ? entry : 0) + chunk * 8;
        const int offset = tile_offset<kHeadDim>(row, chunk);
        copy_async_16(keys_at + offset, source, valid);
        if (values) {
            copy_async_16(values_at + offset, source + to_value, valid);
        }
    }
}

__device__ __forceinline__ void wait_for(const int& counter, int value) {
    while (const_cast<const volatile int&>(counter) < value) {
    }
    __threadfence();
}

template <typename T, int kHeadDim>
__device__ __forceinline__ void put_mask(const Worker<T, kHeadDim>& worker, const int64_t (&entries)[kLaneKeys], int stage) {
    const uint64_t low = __ballot_sync(0xffffffffu, entries[0] >= 0), high = __ballot_sync(0xffffffffu, entries[1] >= 0);
    if (worker.lane == 0) {
        worker.shared.pipeline.unmasked[stage] = high << 32 | low;
    }
}

// The producer's side of the whole launch.
template <typename T, int kHeadDim>
struct Producer {
    const Worker<T, kHeadDim>& worker;
    StageCursor cursor;
    int appends = 0;    // jobs with new tokens, so far
    int decisions = 0;  // pieces that may be passed over once more, so far

    __device__ __forceinline__ void sync() const { __syncwarp(); }
    __device__ __forceinline__ bool leads() const { return worker.lane == 0; }

    __device__ __forceinline__ void run_job() {
        const Job& job = worker.job();
        Pipeline& pipeline = worker.shared.pipeline;
        const NewKeys keys = new_keys(job);
        appends += keys.any();
        KeySearch<T, kHeadDim> search(worker, job.range.begin);
        for (int kv_tile = job.range.begin; kv_tile < job.range.end; ++kv_tile) {
            int64_t entries[kLaneKeys];
            search.next(entries);
            barrier_wait(&pipeline.empty[cursor.stage], cursor.parity ^ 1);
            if (keys.any() && (kv_tile + 1) * kTileTokens > keys.first) {
                wait_for(pipeline.appended, appends);
            }
            put_mask(worker, entries, cursor.stage);
            start_copies(worker, entries, cursor.stage);
            copy_async_arrive(&pipeline.full[cursor.stage]);
            if (worker.lane == 0) {
                barrier_arrive(&pipeline.full[cursor.stage]);
            }
            cursor.advance(worker.num_stages);
        }
    }

    // Whether the consumers pass over the piece once more.
    __device__ __forceinline__ bool finish_piece(const Piece&, bool, bool may_repeat) {
        if (!may_repeat) {
            return false;
        }
        wait_for(worker.shared.pipeline.decided, ++decisions);
        return const_cast<const volatile bool&>(worker.shared.pipeline.once_more);
    }
};

}  // namespace sparsespec
