// A worker: one thread block and its shared memory, as one of its threads sees it. What kernel it runs is its Kind.
#pragma once

#include <type_traits>

#include "pillar_attention/ptx.cuh"
#include "pillar_attention/shared_memory.cuh"

namespace sparsespec {

// What a kernel is compiled for.
template <typename ModelType, int kDim, bool kFp8Pool, Way kWorkWay = Way::kNarrow>
struct KernelKind {
    using Model = ModelType;                                          // of qkv and output
    using Product = std::conditional_t<kFp8Pool, __half, ModelType>;  // of what the matrix products multiply
    static constexpr int kHeadDim = kDim;
    static constexpr bool kFp8 = kFp8Pool;  // keys and values are 8-bit numbers in the pool
    static constexpr Way kWay = kWorkWay;
    static constexpr int kWarps = consumer_warps(kWay);  // that consume
    static constexpr int kConsumers = kWarps * 32;
    static constexpr int kTileRows = tile_rows(kWay);
    using Wide = KernelKind<ModelType, kDim, kFp8Pool, Way::kWide>;
};

template <typename Kind>
struct Worker {
    const PillarAttentionParams& params;
    WorkerShared<Kind::kWay>& shared;
    unsigned char* stages;  // num_stages * stage_bytes(Kind::kHeadDim), then num_raw times half as much
    int num_stages;
    int num_raw;     // places for FP8 keys and values on their way to the stages
    int page_shift;  // log2 of page_size
    int group;       // query heads that share a KV head
    int thread;
    int warp;
    int lane;
    const void* page_map;  // the pool as rows of head_dim numbers, in boxes of a page by a block of columns
    int job_slot;          // of the job that the role is at

    __device__ __forceinline__ const Job& job() const { return shared.jobs[job_slot]; }
    __device__ __forceinline__ const RowTile& tile() const { return job().tile; }
    __device__ __forceinline__ unsigned char* stage(int place) const {
        return stages + place * stage_bytes(Kind::kHeadDim);
    }
    __device__ __forceinline__ unsigned char* raw(int place) const {
        return stage(num_stages) + place * (stage_bytes(Kind::kHeadDim) / 2);
    }
    __device__ __forceinline__ const typename Kind::Model* qkv_row(int row) const {
        return static_cast<const typename Kind::Model*>(params.qkv) +
               int64_t{row} * (params.num_heads + 2 * params.num_kv_heads) * Kind::kHeadDim;
    }
};

// Waits for the other consumers.
template <typename Kind>
__device__ __forceinline__ void consumer_sync(const Worker<Kind>&) {
    asm volatile("bar.sync 1, %0;\n" ::"n"(Kind::kConsumers) : "memory");
}

// A place in a ring; those who fill and those who empty it pass through the same places in the same order.
struct RingCursor {
    int place = 0;
    int parity = 0;

    __device__ __forceinline__ void advance(int num_places) {
        place = place + 1 == num_places ? 0 : place + 1;
        parity ^= place == 0;
    }
};

// Counts one arrival of the whole warp, when all its lanes are through.
__device__ __forceinline__ void warp_arrive(uint64_t* barrier, int lane) {
    __syncwarp();
    if (lane == 0) {
        barrier_arrive(barrier);
    }
}

}  // namespace sparsespec
