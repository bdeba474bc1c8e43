#include <string>

#include "common/cuda_status.h"
#include "pillar_select/kernel.cuh"

namespace sparsespec {

namespace {

Status check(const PillarSelectParams& params) {
    if (params.num_planes != 1 && params.num_planes != 2) {
        return invalid_argument("expected 1 or 2 planes of scores, got " + std::to_string(params.num_planes));
    }
    if (params.max_scored > kMaxSelectGrid || params.num_layers > kMaxSelectGrid) {
        return invalid_argument("expected at most " + std::to_string(kMaxSelectGrid) +
                                " layers and scored slots, got " + std::to_string(params.num_layers) + " and " +
                                std::to_string(params.max_scored));
    }
    return {};
}

}  // namespace

Status launch_pillar_select(const PillarSelectParams& params, cudaStream_t stream) {
    if (Status status = check(params); !status.ok()) {
        return status;
    }
    if (params.max_scored < 1 || params.num_layers < 1 || params.num_kv_heads < 1) {
        return {};
    }
    const dim3 grid(params.num_planes * params.num_kv_heads, params.max_scored, params.num_layers);
    if (params.score_dtype == Dtype::kFloat16) {
        pillar_select_kernel<__half><<<grid, kSelectThreads, 0, stream>>>(params);
    } else {
        pillar_select_kernel<float><<<grid, kSelectThreads, 0, stream>>>(params);
    }
    return cuda_status(cudaGetLastError(), "PillarSelect");
}

}  // namespace sparsespec
