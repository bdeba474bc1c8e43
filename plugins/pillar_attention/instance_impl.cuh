// The body of launch_instance, for the files under instances/.
#pragma once

#include "common/cuda_status.h"
#include "pillar_attention/instance.cuh"
#include "pillar_attention/kernel.cuh"

namespace sparsespec {

template <typename T, int kHeadDim>
Status launch_instance(const PillarAttentionParams& params, const Occupancy& occupancy, cudaStream_t stream) {
    const auto kernel = pillar_attention_kernel<T, kHeadDim>;
    const int bytes = shared_bytes(kHeadDim, occupancy.num_stages);
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) {
        return cuda_status(error, "PillarAttention, shared memory");
    }
    kernel<<<occupancy.num_workers, kThreads, bytes, stream>>>(params, occupancy.num_stages);
    return cuda_status(cudaGetLastError(), "PillarAttention");
}

}  // namespace sparsespec
