// The step's own keys and values go from qkv to the pool, keys rotated, by the consumers.
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
        T* pool =
            static_cast<T*>(params.kv_pool) + pool_offset(worker, position, load_page(worker, position)) + part * 8;
        *reinterpret_cast<uint4*>(pool) = k.low;
        *reinterpret_cast<uint4*>(pool + kHeadDim / 2) = k.high;
        pool += value_offset<kHeadDim>(params);
        *reinterpret_cast<uint4*>(pool) = v.low;
        *reinterpret_cast<uint4*>(pool + kHeadDim / 2) = v.high;
    }
}

// The job's keys whose tokens are the step's own.
struct NewKeys {
    int first;
    int end;

    __device__ __forceinline__ bool any() const { return first < end; }
};

__device__ __forceinline__ NewKeys new_keys(const Job& job) {
    if (!job.pass.attends) {
        return {0, 0};
    }
    return {max(job.tile.first_new, job.range.begin * kTileTokens),
            min(job.tile.num_keys, job.range.end * kTileTokens)};
}

// Appends the step's own tokens among the job's keys, so that all keys are in the pool. Whoever reads a token appends
// it first, without waiting for others: where several row tiles of a prompt read it, they write the same bits.
template <typename T, int kHeadDim>
__device__ __forceinline__ void append_tokens(const Worker<T, kHeadDim>& worker) {
    const NewKeys keys = new_keys(worker.job());
    if (!keys.any()) {
        return;
    }
    for (int first = keys.first; first < keys.end; first += kConsumers / kVectorLanes) {
        const int key = first + worker.thread / kVectorLanes;
        append_token(worker, min(key, keys.end - 1) - worker.tile().first_new, key < keys.end);
    }
    __threadfence();  // the copies that read them do not pass through this multiprocessor's own cache
    consumer_sync();
    if (worker.thread == 0) {
        barrier_arrive(&worker.shared.pipeline.appended);
    }
}

}  // namespace sparsespec
