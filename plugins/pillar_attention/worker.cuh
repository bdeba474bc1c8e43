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
    static constexpr bool kFp8 = kFp8Pool;                // keys and values are 8-bit numbers in the pool and in stages
    static constexpr int kHeadBlocks = (kDim + 63) / 64;  // of 64 numbers, what wgmma makes of a head at once
    static constexpr int kKeyBytes = kDim * (kFp8 ? 1 : 2);  // of a key there, and of a value
    using StageLayout = StageTile<kKeyBytes, kWorkWay>;
    using ValueLayout = StageTile<kDim * 2, kWorkWay>;  // of values as the matrix products take them
    static constexpr Way kWay = kWorkWay;
    static constexpr int kWarps = consumer_warps(kWay);  // that consume
    static constexpr int kTilesAhead = tiles_ahead(kWay);
    static constexpr int kConsumers = kWarps * 32;
    static constexpr int kTileRows = tile_rows(kWay);
    using Wide = KernelKind<ModelType, kDim, kFp8Pool, Way::kWide>;
};

// What the host finds out about a launch, so that no thread has to divide.
struct LaunchShape {
    int32_t room;           // for keys and values, see shared_memory.cuh
    int32_t page_shift;     // log2 of page_size
    int32_t group;          // query heads that share a KV head
    uint32_t inverse;       // of the group, see group_inverse
    int32_t rows_per_tile;  // query rows of a row tile
};

template <typename Kind>
struct Worker {
    const PillarAttentionParams& params;
    const LaunchShape& shape;
    WorkerShared<Kind::kWay>& shared;
    unsigned char* memory;  // what teams have, or buffers for an FP8 pool; then num_stages stages
    int num_stages;
    int thread;
    int warp;
    int lane;
    const void* page_map;  // the pool, in boxes of the keys and the values of a page and head
    int job_slot;          // of the job that the role is at
    int team;              // of a consumer, while threads, warps and lanes count within it

    __device__ __forceinline__ const Job& job() const { return shared.jobs[job_slot]; }
    __device__ __forceinline__ const RowTile& tile() const { return job().tile; }
    __device__ __forceinline__ unsigned char* stage(int place) const { return memory + stage_offset(place); }
    __device__ __forceinline__ int stage_offset(int place) const {
        return stages_offset(Kind::kWay, Kind::kHeadDim, Kind::kFp8) + Kind::StageLayout::stage_offset(place);
    }
    // Of keys or values in fp16.
    __device__ __forceinline__ unsigned char* buffer(int place) const {
        return memory + place * tile_bytes(Kind::kHeadDim, 2);
    }
    // Of a team: its part of the row tile, its queries, and its two buffers of weights.
    __device__ __forceinline__ const RowTile& team_tile() const {
        return num_teams(Kind::kWay) == 1 ? tile() : shared.teams[job_slot][team];
    }
    __device__ __forceinline__ unsigned char* queries() const {
        return memory + teams_offset(Kind::kHeadDim, Kind::kFp8) + team * team_bytes(Kind::kHeadDim);
    }
    __device__ __forceinline__ unsigned char* weights(int place) const {
        return queries() + kTeamRows * Kind::kHeadDim * 2 + place * kWeightBytes;
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

// Waits for the others of the team. Barriers 4 and 5.
template <typename Kind>
__device__ __forceinline__ void team_sync(const Worker<Kind>& worker) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(4 + worker.team), "n"(kTeamThreads) : "memory");
}

// The same; whether any of them says so.
template <typename Kind>
__device__ __forceinline__ bool any_of_team(const Worker<Kind>& worker, bool says) {
    uint32_t any;
    asm volatile(
        "{ .reg .pred mine, any; setp.ne.u32 mine, %1, 0;\n"
        "bar.red.or.pred any, %2, %3, mine;\n"
        "selp.u32 %0, 1, 0, any; }\n"
        : "=r"(any)
        : "r"(uint32_t{says}), "r"(4 + worker.team), "n"(kTeamThreads)
        : "memory");
    return any != 0;
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

// The same of two places, in one register.
struct PairCursor {
    uint32_t passed = 0;

    __device__ __forceinline__ int place() const { return passed & 1; }
    __device__ __forceinline__ int parity() const { return passed >> 1 & 1; }
    __device__ __forceinline__ void advance() { ++passed; }
};

// A consumer's, until the stage is full. kFences: wgmma is to see what others than the copy engine may have written.
template <bool kFences = kHasWgmma, typename Kind>
__device__ __forceinline__ void wait_for_stage(const Worker<Kind>& worker, const RingCursor& stages) {
    barrier_wait(&worker.shared.pipeline.full[stages.place], stages.parity);
    __syncwarp();  // lanes leave the wait on their own, and matrix loads want them together
    if constexpr (kFences) {
        products_see_copies();
    }
}

template <typename Kind>
__device__ __forceinline__ void release_stage(const Worker<Kind>& worker, RingCursor& stages) {
    barrier_arrive(&worker.shared.pipeline.empty[stages.place]);
    stages.advance(worker.num_stages);
}

}  // namespace sparsespec
