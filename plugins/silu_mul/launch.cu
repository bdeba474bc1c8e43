#include <climits>
#include <string>

#include "common/cuda_status.h"
#include "silu_mul/kernel.cuh"

namespace sparsespec {

namespace {

int64_t count_vectors(const SiluMulParams& params) {
    return int64_t{params.num_rows} * (params.intermediate_size / kVectorNumbers);
}

Status check(const SiluMulParams& params) {
    const int32_t size = params.intermediate_size;
    if (size < 1 || size > kMaxIntermediateSize || size % kVectorNumbers != 0) {
        return unsupported("expected an intermediate_size of " + std::to_string(kVectorNumbers) + " to " +
                           std::to_string(kMaxIntermediateSize) + ", a multiple of " + std::to_string(kVectorNumbers) +
                           ", got " + std::to_string(size));
    }
    if (params.dtype != Dtype::kFloat16 && params.dtype != Dtype::kBfloat16) {
        return unsupported("expected gate_up in float16 or bfloat16");
    }
    if (count_vectors(params) > INT_MAX) {
        return unsupported("expected an output of at most " + std::to_string(INT_MAX) + " times " +
                           std::to_string(kVectorNumbers) + " numbers, got " + std::to_string(params.num_rows) +
                           " rows of " + std::to_string(size));
    }
    return {};
}

template <typename T>
cudaError_t launch_type(const SiluMulParams& params, cudaStream_t stream) {
    const auto kernel = silu_mul_kernel<T>;
    bool starts_early = false;
    const cudaError_t error = can_start_early(kernel, &starts_early);
    if (error != cudaSuccess) {
        return error;
    }
    const auto num_vectors = static_cast<uint32_t>(count_vectors(params));
    const uint32_t blocks = (num_vectors + kSiluMulThreads - 1) / kSiluMulThreads;
    const EarlyLaunch launch(static_cast<int>(blocks), kSiluMulThreads, 0, starts_early, stream);
    return cudaLaunchKernelEx(&launch.config, kernel, params, num_vectors);
}

}  // namespace

Status launch_silu_mul(const SiluMulParams& params, cudaStream_t stream) {
    if (Status status = check(params); !status.ok()) {
        return status;
    }
    if (params.num_rows < 1) {
        return {};
    }
    const bool half = params.dtype == Dtype::kFloat16;
    return cuda_status(half ? launch_type<__half>(params, stream) : launch_type<__nv_bfloat16>(params, stream),
                       "SiluMul");
}

}  // namespace sparsespec
