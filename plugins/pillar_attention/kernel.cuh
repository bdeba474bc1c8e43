// The worker's roles: the guide tells the others what to do.
#pragma once

#include <cuda.h>

#include "pillar_attention/append.cuh"
#include "pillar_attention/consume.cuh"
#include "pillar_attention/copy.cuh"
#include "pillar_attention/guide.cuh"
#include "pillar_attention/scorer.cuh"
#include "pillar_attention/scout.cuh"
#include "pillar_attention/unite.cuh"

namespace sparsespec {

// All lanes of a warp arrive at a barrier, each for what it has written or read.
template <int kTilesAhead>
__device__ __forceinline__ void open_pipeline(Pipeline<kTilesAhead>& pipeline, int num_stages, int consumer_warps) {
    constexpr int kWarp = 32;
    const int consumers = consumer_warps * kWarp;
    for (int stage = 0; stage < num_stages; ++stage) {
        barrier_init(&pipeline.full[stage], kCopyArrivals);
        barrier_init(&pipeline.empty[stage], consumers);
    }
    for (int place = 0; place < kTilesAhead; ++place) {
        barrier_init(&pipeline.keys_full[place], kWarp);
        barrier_init(&pipeline.keys_empty[place], kWarp);
    }
    for (int place = 0; place < kMaxJobs; ++place) {
        barrier_init(&pipeline.job_full[place], kWarp);
        barrier_init(&pipeline.job_empty[place], consumers + 2 * kWarp);  // and the scout and the scorer
    }
    for (int buffer = 0; buffer < 2; ++buffer) {
        barrier_init(&pipeline.sums_full[buffer], consumers);
        barrier_init(&pipeline.sums_empty[buffer], kWarp);
    }
    barrier_init(&pipeline.scored, kWarp);
    barrier_init(&pipeline.decided, 1);
}

// A producer's warp and lane are made anew: else they would be kept from the kernel's start on, in local memory.
template <typename Kind>
__device__ __forceinline__ void run_producer(Worker<Kind> worker) {
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(worker.thread));
    worker.warp = worker.thread / 32;
    worker.lane = worker.thread % 32;
    if (worker.warp == Kind::kWarps) {
        Guide<Kind>{worker}.run();
    } else if (worker.warp == Kind::kWarps + 1) {
        Scout<Kind>{worker}.run();
    } else if (worker.warp == Kind::kWarps + 2) {
        run_copier(worker);
    } else {
        run_scorer(worker);
    }
}

template <typename Kind>
__global__ void __launch_bounds__(worker_threads(Kind::kWay), workers_per_processor(Kind::kWay))
pillar_attention_kernel(const __grid_constant__ PillarAttentionParams params,
                        const __grid_constant__ CUtensorMap page_map, const __grid_constant__ LaunchShape shape) {
    static_assert(num_stages(Kind::kWay, Kind::kHeadDim, Kind::kFp8, kMaxRoom) <= kMaxStages, "a barrier each");
    extern __shared__ __align__(1024) unsigned char memory[];
    WorkerShared<Kind::kWay>& shared =
        *reinterpret_cast<WorkerShared<Kind::kWay>*>(memory + room_bytes(Kind::kHeadDim, shape.room));
    start_dependents();
    const int thread = threadIdx.x;
    const Worker<Kind> worker{
        params, shape,       shared,      memory,    num_stages(Kind::kWay, Kind::kHeadDim, Kind::kFp8, shape.room),
        thread, thread / 32, thread % 32, &page_map, 0,
        0};
    if (thread == 0) {
        open_pipeline(shared.pipeline, worker.num_stages, Kind::kWarps);
    }
    __syncthreads();
    if (thread >= Kind::kConsumers) {
        if constexpr (kHasWgmma) {
            give_registers<producer_registers(Kind::kWay, Kind::kHeadDim)>();
        }
        run_producer(worker);
    } else {
        if constexpr (kHasWgmma) {
            take_registers<consumer_registers(Kind::kWay, Kind::kHeadDim)>();
        }
        run_consumer(worker);
    }
}

}  // namespace sparsespec
