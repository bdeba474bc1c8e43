// The body of launch_instance, for the files under instances/.
#pragma once

#include "common/cuda_status.h"
#include "common/early_launch.cuh"
#include "pillar_attention/instance.cuh"
#include "pillar_attention/kernel.cuh"
#include "pillar_attention/page_map.h"

namespace sparsespec {

template <typename Kind>
cudaError_t launch_append(const PillarAttentionParams& params, const Occupancy& occupancy, cudaStream_t stream) {
    const int warps = params.num_rows * ceil_div(params.num_kv_heads, kAppendHeads);
    const EarlyLaunch launch(ceil_div(warps * 32, kAppendThreads), kAppendThreads, 0, occupancy.starts_early, stream);
    return cudaLaunchKernelEx(&launch.config, append_kernel<Kind>, params);
}

template <typename Kind>
cudaError_t launch_attention(const PillarAttentionParams& params, const Occupancy& occupancy,
                             const CUtensorMap& page_map, cudaStream_t stream) {
    const auto kernel = pillar_attention_kernel<Kind>;
    const int bytes = shared_bytes(Kind::kWay, Kind::kHeadDim, occupancy.room);
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) {
        return error;
    }
    const EarlyLaunch launch(occupancy.num_workers, worker_threads(Kind::kWay), bytes, occupancy.starts_early, stream);
    const int group = params.num_heads / params.num_kv_heads;
    const int page_shift = params.page_size == 16 ? 4 : params.page_size == 32 ? 5 : 6;
    const LaunchShape shape{occupancy.room, page_shift, group, group_inverse(group),
                            rows_per_tile(Kind::kTileRows, group)};
    return cudaLaunchKernelEx(&launch.config, kernel, params, page_map, shape);
}

template <typename Kind>
cudaError_t launch_unite(const PillarAttentionParams& params, const Occupancy& occupancy, cudaStream_t stream) {
    const EarlyLaunch launch(unite_blocks(Kind::kWay) * occupancy.processors, unite_warps(Kind::kWay) * 32, 0,
                             occupancy.starts_early, stream);
    return cudaLaunchKernelEx(&launch.config, unite_kernel<Kind>, params);
}

// Both kernels the same way.
template <typename Kind>
cudaError_t launch_way(const PillarAttentionParams& params, const Occupancy& occupancy, const CUtensorMap& page_map,
                       cudaStream_t stream) {
    const cudaError_t error = launch_attention<Kind>(params, occupancy, page_map, stream);
    return error == cudaSuccess ? launch_unite<Kind>(params, occupancy, stream) : error;
}

template <typename Kind>
Status launch_instance(const PillarAttentionParams& params, const Occupancy& occupancy, cudaStream_t stream) {
    if (params.num_rows < 1) {
        return {};
    }
    CUtensorMap page_map{};
    if (occupancy.way == Way::kWide && !Kind::kFp8) {
        if (Status status = map_pages(params, Kind::StageLayout::kRowBytes, &page_map); !status.ok()) {
            return status;
        }
    }
    cudaError_t error = launch_append<Kind>(params, occupancy, stream);
    if (error == cudaSuccess) {
        error = occupancy.way == Way::kNarrow ? launch_way<Kind>(params, occupancy, page_map, stream)
                                              : launch_way<typename Kind::Wide>(params, occupancy, page_map, stream);
    }
    return cuda_status(error, "PillarAttention");
}

}  // namespace sparsespec
