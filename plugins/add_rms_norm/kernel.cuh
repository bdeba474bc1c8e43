// A thread block for each row, whose registers hold it between the sum of its squares and its norm. What is added to it
// comes in parts, as products divided along their sums leave it.
#pragma once

#include "add_rms_norm/params.h"
#include "common/early_launch.cuh"
#include "common/numbers.cuh"

namespace sparsespec {

// Most threads, where each holds so many vectors of 16 bytes.
template <int kVectors>
constexpr int kNormThreads = kVectors <= 2 ? 512 : 1024;
constexpr int kMostVectors = 4;
static_assert(kNormThreads<2> * 2 * kVectorNumbers == kMaxSplitHiddenSize, "rows of two vectors may be split");
static_assert(kNormThreads<kMostVectors> * kMostVectors * kVectorNumbers == kMaxHiddenSize, "a row in registers");

// The weight is older than most launches before, and a product's weights have taken its place in the L2 since. That it
// is fetched before the wait is no read: the L2 sees what others write.
__device__ __forceinline__ void prefetch_vector(const uint4* vector) {
    asm volatile("prefetch.global.L2 [%0];\n" ::"l"(vector));
}

// The sum of `value` over the block's threads, for each of them. Once in a kernel.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float warp_sums[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, step);
    }
    if (lane == 0) {
        warp_sums[warp] = value;
    }
    __syncthreads();
    value = lane < num_warps ? warp_sums[lane] : 0;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, step);
    }
    return value;
}

// What a thread holds of a row: vectors blockDim.x apart, and the weights that go with them.
template <typename T, int kVectors, int kParts>
struct RowPart {
    uint4 sums[kVectors], weights[kVectors];
    int num_vectors;  // of the row

    __device__ __forceinline__ int place(int index) const { return threadIdx.x + index * blockDim.x; }

    // All loads before the first number is used. part_vectors: from a part of delta to the next.
    __device__ __forceinline__ void load(const uint4* hidden, const uint4* delta, int64_t part_vectors,
                                         const uint4* weight) {
        uint4 deltas[kVectors][kParts];
#pragma unroll
        for (int index = 0; index < kVectors; ++index) {
            if (place(index) < num_vectors) {
                sums[index] = hidden[place(index)];
                weights[index] = weight[place(index)];
#pragma unroll
                for (int part = 0; part < kParts; ++part) {
                    deltas[index][part] = delta[part * part_vectors + place(index)];
                }
            }
        }
#pragma unroll
        for (int index = 0; index < kVectors; ++index) {
            if (place(index) < num_vectors) {
                sums[index] = sum_of_eight(sums[index], deltas[index]);
            }
        }
    }

    // In float32, rounded once.
    __device__ __forceinline__ static uint4 sum_of_eight(const uint4& first, const uint4 (&parts)[kParts]) {
        float numbers[8];
        unpack_eight<T>(first, numbers);
#pragma unroll
        for (const uint4& part : parts) {
            float others[8];
            unpack_eight<T>(part, others);
#pragma unroll
            for (int index = 0; index < 8; ++index) {
                numbers[index] += others[index];
            }
        }
        return pack_eight<T>(numbers);
    }

    // Of the rounded sums.
    __device__ __forceinline__ float squares() const {
        float total = 0;
#pragma unroll
        for (int index = 0; index < kVectors; ++index) {
            if (place(index) < num_vectors) {
                float numbers[8];
                unpack_eight<T>(sums[index], numbers);
#pragma unroll
                for (const float number : numbers) {
                    total += number * number;
                }
            }
        }
        return total;
    }

    __device__ __forceinline__ void store_sums(uint4* hidden) const {
#pragma unroll
        for (int index = 0; index < kVectors; ++index) {
            if (place(index) < num_vectors) {
                hidden[place(index)] = sums[index];
            }
        }
    }

    __device__ __forceinline__ void store_normed(uint4* normed, float factor) const {
#pragma unroll
        for (int index = 0; index < kVectors; ++index) {
            if (place(index) < num_vectors) {
                float numbers[8];
                unpack_eight<T>(sums[index], numbers);
                scale_by<T>(numbers, factor, weights[index]);
                normed[place(index)] = pack_eight<T>(numbers);
            }
        }
    }
};

template <typename T, int kVectors, int kParts>
__global__ void __launch_bounds__(kNormThreads<kVectors>)
add_rms_norm_kernel(const __grid_constant__ AddRmsNormParams params) {
    start_dependents();
    const uint4* const weight = static_cast<const uint4*>(params.weight);
    RowPart<T, kVectors, kParts> part;
    part.num_vectors = params.hidden_size / kVectorNumbers;
    for (int index = 0; index < kVectors; ++index) {
        if (part.place(index) < part.num_vectors) {
            prefetch_vector(weight + part.place(index));
        }
    }
    wait_for_launch_before();
    const int64_t row = int64_t{blockIdx.x} * part.num_vectors;
    const int64_t all_rows = int64_t{params.num_rows} * part.num_vectors;
    uint4* const hidden = static_cast<uint4*>(params.hidden) + row;
    part.load(hidden, static_cast<const uint4*>(params.delta) + row, all_rows, weight);
    const float squares = part.squares();
    part.store_sums(hidden);
    const float factor = rsqrtf(block_sum(squares) / params.hidden_size + params.rms_norm_eps);
    part.store_normed(static_cast<uint4*>(params.normed) + row, factor);
}

}  // namespace sparsespec
