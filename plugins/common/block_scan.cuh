// Sums and prefix sums over a thread block.
#pragma once

#include <cstdint>

namespace sparsespec {

// Inclusive sum over the lanes of a warp.
__device__ __forceinline__ int64_t warp_inclusive_sum(int64_t value) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int64_t other = __shfl_up_sync(0xffffffffu, value, step);
        value += lane >= step ? other : 0;
    }
    return value;
}

struct InclusiveSum {
    int64_t end;  // of this thread and those before it
    int64_t total;
};

// Over a block of kThreads. The next call needs other `warp_sums`, one for each warp, or a barrier before it.
template <int kThreads>
__device__ __forceinline__ InclusiveSum block_inclusive_sum(int64_t value, int64_t (&warp_sums)[kThreads / 32]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t end = warp_inclusive_sum(value);
    if (lane == 31) {
        warp_sums[warp] = end;
    }
    __syncthreads();
    const int64_t warps = warp_inclusive_sum(lane < kThreads / 32 ? warp_sums[lane] : 0);
    const int64_t before = __shfl_sync(0xffffffffu, warps, (warp + 31) % 32);
    return {end + (warp > 0 ? before : 0), __shfl_sync(0xffffffffu, warps, 31)};
}

// What the warps of a block of kThreads tell each other in block_sum and block_scan.
template <int kThreads>
struct alignas(16) WarpSums {
    static constexpr int kWarps = kThreads / 32;

    uint32_t sums[kWarps];

    // Of the first `count` warps.
    __device__ __forceinline__ uint32_t total(int count) const {
        if constexpr (kWarps > 4) {
            const int lane = threadIdx.x % 32;
            return __reduce_add_sync(0xffffffffu, lane < count ? sums[lane] : 0u);
        }
        uint32_t total = 0;
#pragma unroll
        for (int warp = 0; warp < kWarps; ++warp) {
            total += warp < count ? sums[warp] : 0u;
        }
        return total;
    }
};

// Sum over the block, for all of its threads. The next call needs other `warps`, or a barrier before it.
template <int kThreads>
__device__ __forceinline__ uint32_t block_sum(uint32_t value, WarpSums<kThreads>& warps) {
    const uint32_t sum = __reduce_add_sync(0xffffffffu, value);
    if constexpr (kThreads == 32) {
        return sum;
    }
    if (threadIdx.x % 32 == 0) {
        warps.sums[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    return warps.total(kThreads / 32);
}

struct BlockSums {
    uint32_t before;  // of the threads before this one
    uint32_t total;
};

// As block_sum.
template <int kThreads>
__device__ __forceinline__ BlockSums block_scan(uint32_t value, WarpSums<kThreads>& warps) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t inclusive = value;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const uint32_t other = __shfl_up_sync(0xffffffffu, inclusive, step);
        inclusive += lane >= step ? other : 0u;
    }
    if (lane == 31) {
        warps.sums[warp] = inclusive;
    }
    __syncthreads();
    return {warps.total(warp) + inclusive - value, warps.total(kThreads / 32)};
}

}  // namespace sparsespec
