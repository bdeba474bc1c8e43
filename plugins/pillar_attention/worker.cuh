// A worker: one thread block and its shared memory.
#pragma once

#include "pillar_attention/shared_memory.cuh"

namespace sparsespec {

template <typename T, int kHeadDim>
struct Worker {
    const PillarAttentionParams& params;
    WorkerShared& shared;
    unsigned char* stages;  // num_stages * stage_bytes(kHeadDim)
    int num_stages;
    int page_shift;  // log2 of page_size
    int thread;
    int warp;
    int lane;

    __device__ __forceinline__ const Job& job() const { return shared.job; }
    __device__ __forceinline__ const RowTile& tile() const { return shared.job.tile; }
    __device__ __forceinline__ int group() const { return params.num_heads / params.num_kv_heads; }
    __device__ __forceinline__ unsigned char* keys(int stage) const { return stages + stage * stage_bytes(kHeadDim); }
    __device__ __forceinline__ unsigned char* values(int stage) const { return keys(stage) + stage_bytes(kHeadDim) / 2; }
    __device__ __forceinline__ int64_t* entries(int kv_tile) const { return shared.entries[kv_tile % kEntryTiles]; }
    __device__ __forceinline__ const T* qkv_row(int row) const {
        return static_cast<const T*>(params.qkv) + int64_t{row} * (params.num_heads + 2 * params.num_kv_heads) * kHeadDim;
    }
};

}  // namespace sparsespec
