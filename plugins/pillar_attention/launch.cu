#include <algorithm>
#include <string>

#include "common/cuda_status.h"
#include "pillar_attention/instance.cuh"
#include "pillar_attention/merge.cuh"

namespace sparsespec {

namespace {

// The current device.
Status read_device(Device* described) {
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    const auto read = [&](int* value, cudaDeviceAttr attribute) {
        if (error == cudaSuccess) {
            error = cudaDeviceGetAttribute(value, attribute, device);
        }
    };
    read(&described->processors, cudaDevAttrMultiProcessorCount);
    read(&described->memory_per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    read(&described->memory_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    read(&described->reserved_memory, cudaDevAttrReservedSharedMemoryPerBlock);
    read(&described->major, cudaDevAttrComputeCapabilityMajor);
    return cuda_status(error, "reading the device's attributes");
}

Status check(const PillarAttentionParams& params) {
    const int group = params.num_kv_heads > 0 ? params.num_heads / params.num_kv_heads : 0;
    if (group < 1 || group > kMaxGroup || group * params.num_kv_heads != params.num_heads) {
        return unsupported("expected 1 to " + std::to_string(kMaxGroup) + " query heads per KV head, got " +
                           std::to_string(params.num_heads) + " and " + std::to_string(params.num_kv_heads));
    }
    if (params.page_size != 16 && params.page_size != 32 && params.page_size != 64) {
        return unsupported("expected page_size 16, 32 or 64, got " + std::to_string(params.page_size));
    }
    if (params.dtype != Dtype::kFloat16 && params.dtype != Dtype::kBfloat16) {
        return unsupported("expected qkv in float16 or bfloat16");
    }
    if (params.kv_dtype != params.dtype && params.kv_dtype != Dtype::kFloat8E4m3) {
        return unsupported("expected kv_pool in the type of qkv or in float8_e4m3");
    }
    if (params.kv_dtype == Dtype::kFloat8E4m3 && params.kv_scale == nullptr) {
        return unsupported("expected kv_scale with a kv_pool in float8_e4m3");
    }
    return {};
}

template <typename T, bool kFp8>
Status launch_type(const PillarAttentionParams& params, const Occupancy& occupancy, cudaStream_t stream) {
    switch (params.head_dim) {
        case 64:
            return launch_instance<KernelKind<T, 64, kFp8>>(params, occupancy, stream);
        case 96:
            return launch_instance<KernelKind<T, 96, kFp8>>(params, occupancy, stream);
        case 128:
            return launch_instance<KernelKind<T, 128, kFp8>>(params, occupancy, stream);
        default:
            return head_dim_error(params.head_dim);
    }
}

template <typename T>
Status launch_pool(const PillarAttentionParams& params, const Occupancy& occupancy, cudaStream_t stream) {
    return params.kv_dtype == Dtype::kFloat8E4m3 ? launch_type<T, true>(params, occupancy, stream)
                                                 : launch_type<T, false>(params, occupancy, stream);
}

}  // namespace

Status attention_shape(int32_t head_dim, Way way, WorkerShape* shape) {
    Device device{};
    Occupancy occupancy{};
    if (Status status = read_device(&device); !status.ok()) {
        return status;
    }
    Status status = fill_device(head_dim, way, device, &occupancy);
    *shape = {occupancy.num_workers, tile_rows(way)};
    return status;
}

size_t pillar_attention_workspace_size(int32_t num_heads, int32_t num_kv_heads, int32_t head_dim) {
    size_t floats = 0;
    for (const Way way : {Way::kNarrow, Way::kWide}) {
        const size_t parts = size_t{2} * most_workers(way);
        floats = std::max(floats, parts * partial_floats(way, num_heads / num_kv_heads, head_dim));
    }
    return floats * sizeof(float);
}

Status launch_pillar_attention(const PillarAttentionParams& params, cudaStream_t stream) {
    if (Status status = check(params); !status.ok()) {
        return status;
    }
    Device device{};
    if (Status status = read_device(&device); !status.ok()) {
        return status;
    }
    Occupancy occupancy{};
    if (Status status = fill_device(params.head_dim, choose_way(params, device), device, &occupancy); !status.ok()) {
        return status;
    }
    return params.dtype == Dtype::kFloat16 ? launch_pool<__half>(params, occupancy, stream)
                                           : launch_pool<__nv_bfloat16>(params, occupancy, stream);
}

}  // namespace sparsespec
