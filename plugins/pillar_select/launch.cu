#include <algorithm>
#include <climits>
#include <string>

#include "common/cuda_status.h"
#include "pillar_select/kernel.cuh"

namespace sparsespec {

namespace {

// Thread blocks whose registers hold rows of about 4k, 8k and more scores.
template <typename T>
constexpr int kTinyThreads = 4096 / (kHeldGroups<T> * kGroup);
template <typename T>
constexpr int kShortThreads = 2 * kTinyThreads<T>;
template <typename T>
constexpr int kLongThreads = sizeof(T) == 2 ? 256 : 768;

template <typename T, int kThreads>
constexpr int kHeldScores = kThreads * kHeldGroups<T> * kGroup;

// Rows that are a little longer do not need more threads.
template <typename T, int kThreads>
constexpr int kMostScores = kHeldScores<T, kThreads> + kHeldScores<T, kThreads> / 16;

Status check(const PillarSelectParams& params) {
    if (params.num_planes != 1 && params.num_planes != 2) {
        return invalid_argument("expected 1 or 2 planes of scores, got " + std::to_string(params.num_planes));
    }
    if (params.num_scored > kMaxSelectGrid || params.num_layers > kMaxSelectGrid) {
        return invalid_argument("expected at most " + std::to_string(kMaxSelectGrid) +
                                " layers and scored slots, got " + std::to_string(params.num_layers) + " and " +
                                std::to_string(params.num_scored));
    }
    if (params.num_scored > params.max_scored) {
        return invalid_argument("expected scores of at most max_scored = " + std::to_string(params.max_scored) +
                                " slots, got " + std::to_string(params.num_scored));
    }
    return {};
}

// Dynamic shared memory that a block of the kernel may have.
template <typename Kernel>
cudaError_t find_spare_bytes(Kernel kernel, int* bytes) {
    int device = 0, most = 0;
    cudaFuncAttributes compiled{};
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
    if (error == cudaSuccess) {
        error = cudaFuncGetAttributes(&compiled, kernel);
    }
    *bytes = most - static_cast<int>(compiled.sharedSizeBytes);
    return error;
}

// Serves the rows of more than `more_than` and at most `at_most` positions.
template <typename T, int kThreads>
cudaError_t launch_tier(const PillarSelectParams& params, int more_than, int at_most, cudaStream_t stream) {
    constexpr int kGroupBytes = kGroup * sizeof(T);
    const auto kernel = pillar_select_kernel<T, kThreads>;
    int most_bytes = 0;
    cudaError_t error = find_spare_bytes(kernel, &most_bytes);
    const int others = std::max(0, std::min(at_most, params.max_positions) - kHeldScores<T, kThreads>);
    const int num_spare = std::min(others / kGroup + (others % kGroup > 0 ? 1 : 0), most_bytes / kGroupBytes);
    if (error == cudaSuccess) {
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_bytes);
    }
    if (error != cudaSuccess) {
        return error;
    }
    const bool by_vectors = params.max_positions % kGroup == 0 && reinterpret_cast<uintptr_t>(params.scores) % 16 == 0;
    const dim3 grid(params.num_planes * params.num_kv_heads, params.num_scored, params.num_layers);
    kernel<<<grid, kThreads, num_spare * kGroupBytes, stream>>>(params,
                                                                SelectTier{more_than, at_most, num_spare, by_vectors});
    return cudaGetLastError();
}

// One launch where no row can be long; else one for the short rows and one for the long ones.
template <typename T>
cudaError_t launch_type(const PillarSelectParams& params, cudaStream_t stream) {
    constexpr int kTiny = kTinyThreads<T>, kShort = kShortThreads<T>, kLong = kLongThreads<T>;
    if (params.max_positions <= kMostScores<T, kTiny>) {
        return launch_tier<T, kTiny>(params, 0, INT_MAX, stream);
    }
    if (params.max_positions <= kMostScores<T, kShort>) {
        return launch_tier<T, kShort>(params, 0, INT_MAX, stream);
    }
    constexpr int kMost = kHeldScores<T, kShort>;
    const cudaError_t error = launch_tier<T, kShort>(params, 0, kMost, stream);
    return error == cudaSuccess ? launch_tier<T, kLong>(params, kMost, INT_MAX, stream) : error;
}

}  // namespace

Status launch_pillar_select(const PillarSelectParams& params, cudaStream_t stream) {
    if (Status status = check(params); !status.ok()) {
        return status;
    }
    if (params.num_scored < 1 || params.num_layers < 1 || params.num_kv_heads < 1) {
        return {};
    }
    const bool half = params.score_dtype == Dtype::kFloat16;
    return cuda_status(half ? launch_type<__half>(params, stream) : launch_type<float>(params, stream), "PillarSelect");
}

}  // namespace sparsespec
