#include <string>

#include "add_rms_norm/kernel.cuh"
#include "common/cuda_status.h"

namespace sparsespec {

namespace {

Status check(const AddRmsNormParams& params) {
    const int32_t size = params.hidden_size;
    if (size < 1 || size > kMaxHiddenSize || size % kVectorNumbers != 0) {
        return unsupported("expected a hidden_size of " + std::to_string(kVectorNumbers) + " to " +
                           std::to_string(kMaxHiddenSize) + ", a multiple of " + std::to_string(kVectorNumbers) +
                           ", got " + std::to_string(size));
    }
    const int32_t most_parts = size <= kMaxSplitHiddenSize ? kMostParts : 1;
    if (params.num_parts < 1 || params.num_parts > most_parts) {
        return unsupported("expected a delta of 1 to " + std::to_string(most_parts) + " parts for a hidden_size of " +
                           std::to_string(size) + ", got " + std::to_string(params.num_parts));
    }
    if (params.dtype != Dtype::kFloat16 && params.dtype != Dtype::kBfloat16) {
        return unsupported("expected hidden in float16 or bfloat16");
    }
    return {};
}

// Whole warps.
template <typename T, int kVectors, int kParts>
cudaError_t launch_parts(const AddRmsNormParams& params, cudaStream_t stream) {
    constexpr int kWarpNumbers = 32 * kVectors * kVectorNumbers;
    const auto kernel = add_rms_norm_kernel<T, kVectors, kParts>;
    bool starts_early = false;
    const cudaError_t error = can_start_early(kernel, &starts_early);
    if (error != cudaSuccess) {
        return error;
    }
    const int warps = (params.hidden_size + kWarpNumbers - 1) / kWarpNumbers;
    const EarlyLaunch launch(params.num_rows, warps * 32, 0, starts_early, stream);
    return cudaLaunchKernelEx(&launch.config, kernel, params);
}

template <typename T, int kVectors>
cudaError_t launch_vectors(const AddRmsNormParams& params, cudaStream_t stream) {
    switch (params.num_parts) {
        case 1:
            return launch_parts<T, kVectors, 1>(params, stream);
        case 2:
            return launch_parts<T, kVectors, 2>(params, stream);
        case 3:
            return launch_parts<T, kVectors, 3>(params, stream);
        default:
            return launch_parts<T, kVectors, kMostParts>(params, stream);
    }
}

// As many threads as there are vectors, up to what lets several rows share a multiprocessor.
template <typename T>
cudaError_t launch_type(const AddRmsNormParams& params, cudaStream_t stream) {
    const int vectors = params.hidden_size / kVectorNumbers;
    if (vectors <= kNormThreads<1>) {
        return launch_vectors<T, 1>(params, stream);
    }
    return params.hidden_size <= kMaxSplitHiddenSize ? launch_vectors<T, 2>(params, stream)
                                                     : launch_parts<T, kMostVectors, 1>(params, stream);
}

}  // namespace

Status launch_add_rms_norm(const AddRmsNormParams& params, cudaStream_t stream) {
    if (Status status = check(params); !status.ok()) {
        return status;
    }
    if (params.num_rows < 1) {
        return {};
    }
    const bool half = params.dtype == Dtype::kFloat16;
    return cuda_status(half ? launch_type<__half>(params, stream) : launch_type<__nv_bfloat16>(params, stream),
                       "AddRmsNorm");
}

}  // namespace sparsespec
