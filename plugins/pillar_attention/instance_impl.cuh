// The body of launch_instance, for the files under instances/.
#pragma once

#include "common/cuda_status.h"
#include "pillar_attention/instance.cuh"
#include "pillar_attention/kernel.cuh"
#include "pillar_attention/page_map.h"

namespace sparsespec {

template <typename Kind>
void launch_append(const PillarAttentionParams& params, cudaStream_t stream) {
    const int warps = params.num_rows * ceil_div(params.num_kv_heads, kAppendHeads);
    append_kernel<Kind><<<ceil_div(warps * 32, kAppendThreads), kAppendThreads, 0, stream>>>(params);
}

template <typename Kind>
cudaError_t launch_attention(const PillarAttentionParams& params, const Occupancy& occupancy,
                             const CUtensorMap& page_map, cudaStream_t stream) {
    const auto kernel = pillar_attention_kernel<Kind>;
    const int bytes = shared_bytes(Kind::kWay, Kind::kHeadDim, occupancy.num_stages);
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) {
        return error;
    }
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(occupancy.num_workers);
    config.blockDim = dim3(worker_threads(Kind::kWay));
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = occupancy.starts_early ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, params, page_map, static_cast<int>(occupancy.num_stages));
}

template <typename Kind>
Status launch_instance(const PillarAttentionParams& params, const Occupancy& occupancy, cudaStream_t stream) {
    if (params.num_rows < 1) {
        return {};
    }
    CUtensorMap page_map{};
    if (occupancy.copies_boxes && !Kind::kFp8) {
        if (Status status = map_pages(params, TileLayout<Kind::kHeadDim>::kRowBytes, &page_map); !status.ok()) {
            return status;
        }
    }
    launch_append<Kind>(params, stream);
    const cudaError_t error = occupancy.way == Way::kNarrow
                                  ? launch_attention<Kind>(params, occupancy, page_map, stream)
                                  : launch_attention<typename Kind::Wide>(params, occupancy, page_map, stream);
    return cuda_status(error == cudaSuccess ? cudaGetLastError() : error, "PillarAttention");
}

}  // namespace sparsespec
