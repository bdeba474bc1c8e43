// Keys and values: the step's own go from qkv to the pool, rotated; all go from the pool to shared memory, tile by tile.
#pragma once

#include "pillar_attention/entries.cuh"
#include "pillar_attention/rotate.cuh"

namespace sparsespec {

// A token's value lies so many numbers after its key.
template <int kHeadDim>
__device__ __forceinline__ int64_t value_offset(const PillarAttentionParams& params) {
    return int64_t{params.num_kv_heads} * params.page_size * kHeadDim;
}

// Appends the token of one of the slot's rows, if `present`. Eight lanes; the warp is together.
template <typename T, int kHeadDim>
__device__ __forceinline__ void append_token(const Worker<T, kHeadDim>& worker, int row, bool present) {
    const PillarAttentionParams& params = worker.params;
    const RowTile& tile = worker.tile();
    const int part = worker.lane % kVectorLanes;
    const bool holds = present && holds_part<kHeadDim>(part);
    const int position = tile.work.first_position + row;
    const T* key = worker.qkv_row(tile.work.row_start + row) + (params.num_heads + tile.kv_head) * kHeadDim;
    VectorPart k{}, v{};
    if (holds) {
        k = load_part<T, kHeadDim>(key, part);
        v = load_part<T, kHeadDim>(key + params.num_kv_heads * kHeadDim, part);
    }
    const float* rope = params.rope_table + int64_t{position} * kHeadDim;
    k = rotated<T, kHeadDim>(k, static_cast<const T*>(params.k_norm), params.rms_norm_eps, rope, part);
    if (holds) {
        T* pool = static_cast<T*>(params.kv_pool) + pool_offset(worker, position, load_page(worker, position)) + part * 8;
        *reinterpret_cast<uint4*>(pool) = k.low;
        *reinterpret_cast<uint4*>(pool + kHeadDim / 2) = k.high;
        pool += value_offset<kHeadDim>(params);
        *reinterpret_cast<uint4*>(pool) = v.low;
        *reinterpret_cast<uint4*>(pool + kHeadDim / 2) = v.high;
    }
}

// Appends the step's own tokens among the job's keys, so that from here on all keys are in the pool. Whoever reads a token
// appends it first, without waiting for others: where several row tiles of a prompt read it, they write the same bits.
template <typename T, int kHeadDim>
__device__ __forceinline__ void append_tokens(const Worker<T, kHeadDim>& worker) {
    const RowTile& tile = worker.tile();
    const int first = max(tile.first_new, worker.job().range.begin * kTileTokens);
    const int end = min(tile.num_keys, worker.job().range.end * kTileTokens);
    if (first >= end) {
        return;
    }
    for (int key = first + worker.thread / kVectorLanes; key - worker.thread / kVectorLanes < end; key += kThreads / kVectorLanes) {
        append_token(worker, min(key, end - 1) - tile.first_new, key < end);
    }
    __threadfence();  // the copies that read them do not pass through this multiprocessor's own cache
}

// Starts the copies of a tile whose entries are known. Masked tokens become zeros, so that no NaN of theirs spreads.
template <typename T, int kHeadDim>
__device__ __forceinline__ void start_copies(const Worker<T, kHeadDim>& worker, int kv_tile, int stage) {
    constexpr int kChunks = kHeadDim / 8;
    const int64_t* entries = worker.entries(kv_tile);
    const bool values = worker.job().pass.attends;
    const T* pool = static_cast<const T*>(worker.params.kv_pool);
    const uint32_t keys_at = shared_address(worker.keys(stage)), values_at = shared_address(worker.values(stage));
    const int64_t to_value = value_offset<kHeadDim>(worker.params);
#pragma unroll
    for (int part = 0; part < kTileTokens * kChunks / kThreads; ++part) {
        const int index = part * kThreads + worker.thread;
        const int row = index / kChunks, chunk = index % kChunks;
        const int64_t entry = entries[row];
        const bool valid = entry >= 0;
        const T* source = pool + (valid ? entry : 0) + chunk * 8;
        const int offset = tile_offset<kHeadDim>(row, chunk);
        copy_async_16(keys_at + offset, source, valid);
        if (values) {
            copy_async_16(values_at + offset, source + to_value, valid);
        }
    }
}

}  // namespace sparsespec
