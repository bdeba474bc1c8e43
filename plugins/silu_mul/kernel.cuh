// A thread for each 16 bytes of output, whatever the row.
#pragma once

#include "common/early_launch.cuh"
#include "common/numbers.cuh"
#include "silu_mul/params.h"

namespace sparsespec {

// Few, so that the step of one row takes more than a few multiprocessors.
constexpr int kSiluMulThreads = 128;

// Rounded as silu is alone, and then as a product.
template <typename T>
__device__ __forceinline__ uint4 silu_mul_eight(const uint4& gate, const uint4& up) {
    float gates[8], numbers[8];
    unpack_eight<T>(gate, gates);
    unpack_eight<T>(up, numbers);
#pragma unroll
    for (int index = 0; index < 8; ++index) {
        numbers[index] *= rounded<T>(gates[index] / (1 + expf(-gates[index])));
    }
    return pack_eight<T>(numbers);
}

// num_vectors: of the output.
template <typename T>
__global__ void __launch_bounds__(kSiluMulThreads)
silu_mul_kernel(const __grid_constant__ SiluMulParams params, uint32_t num_vectors) {
    start_dependents();
    const uint32_t index = blockIdx.x * kSiluMulThreads + threadIdx.x;
    const uint32_t row_vectors = params.intermediate_size / kVectorNumbers;
    // The row's gate, and then as many numbers of up, come before what belongs to this vector's row.
    const uint4* const gate =
        static_cast<const uint4*>(params.gate_up) + (size_t{index / row_vectors} * row_vectors + index);
    wait_for_launch_before();
    if (index < num_vectors) {
        static_cast<uint4*>(params.output)[index] = silu_mul_eight<T>(gate[0], gate[row_vectors]);
    }
}

}  // namespace sparsespec
