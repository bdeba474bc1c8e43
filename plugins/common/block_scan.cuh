// Prefix sums over a thread block.
#pragma once

namespace sparsespec {

// Inclusive sum over the block; `warp_sums` holds one value per warp.
template <typename Number>
__device__ Number block_inclusive_sum(Number value, Number* warp_sums) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int step = 1; step < 32; step *= 2) {
        const Number other = __shfl_up_sync(0xffffffffu, value, step);
        value += lane >= step ? other : Number{0};
    }
    if (lane == 31) {
        warp_sums[warp] = value;
    }
    __syncthreads();
    Number before{0};
    for (int index = 0; index < warp; ++index) {
        before += warp_sums[index];
    }
    __syncthreads();
    return value + before;
}

}  // namespace sparsespec
