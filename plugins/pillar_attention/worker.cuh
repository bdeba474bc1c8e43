// A worker: one thread block and its shared memory, as one of its threads sees it.
#pragma once

#include "pillar_attention/ptx.cuh"
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

    // Which producer this is; negative for consumers.
    __device__ __forceinline__ int producer() const { return warp - kWarps; }
    __device__ __forceinline__ Job& job() const { return shared.jobs[max(0, 1 + producer())]; }
    __device__ __forceinline__ const RowTile& tile() const { return job().tile; }
    __device__ __forceinline__ int group() const { return params.num_heads / params.num_kv_heads; }
    __device__ __forceinline__ unsigned char* keys(int stage) const { return stages + stage * stage_bytes(kHeadDim); }
    __device__ __forceinline__ unsigned char* values(int stage) const {
        return keys(stage) + stage_bytes(kHeadDim) / 2;
    }
    __device__ __forceinline__ const T* qkv_row(int row) const {
        return static_cast<const T*>(params.qkv) +
               int64_t{row} * (params.num_heads + 2 * params.num_kv_heads) * kHeadDim;
    }
};

// Waits for the other consumers.
__device__ __forceinline__ void consumer_sync() {
    asm volatile("bar.sync 1, %0;\n" ::"n"(kConsumers) : "memory");
}

// A place in the ring of stages; producers and consumers pass through the same places in the same order.
struct StageCursor {
    int stage = 0;
    int parity = 0;

    __device__ __forceinline__ void advance(int num_stages) {
        stage = stage + 1 == num_stages ? 0 : stage + 1;
        parity ^= stage == 0;
    }
};

}  // namespace sparsespec
