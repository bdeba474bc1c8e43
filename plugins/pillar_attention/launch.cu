#include <string>

#include "common/cuda_status.h"
#include "pillar_attention/instance.cuh"
#include "pillar_attention/merge.cuh"

namespace sparsespec {

namespace {

// Workers per multiprocessor, at most: more would leave a worker too few registers.
constexpr int kWorkersPerProcessor = 2;

struct DeviceMemory {
    int processors;
    int per_processor;
    int per_block;
    int reserved;
};

Status device_memory(DeviceMemory* memory) {
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    const auto read = [&](int* value, cudaDeviceAttr attribute) {
        if (error == cudaSuccess) {
            error = cudaDeviceGetAttribute(value, attribute, device);
        }
    };
    read(&memory->processors, cudaDevAttrMultiProcessorCount);
    read(&memory->per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    read(&memory->per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    read(&memory->reserved, cudaDevAttrReservedSharedMemoryPerBlock);
    return cuda_status(error, "reading the device's attributes");
}

Status head_dim_error(int32_t head_dim) {
    return unsupported("expected head_dim 64, 96 or 128, got " + std::to_string(head_dim));
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
    return {};
}

template <typename T>
Status launch_type(const PillarAttentionParams& params, const Occupancy& occupancy, cudaStream_t stream) {
    switch (params.head_dim) {
        case 64:
            return launch_instance<T, 64>(params, occupancy, stream);
        case 96:
            return launch_instance<T, 96>(params, occupancy, stream);
        case 128:
            return launch_instance<T, 128>(params, occupancy, stream);
        default:
            return head_dim_error(params.head_dim);
    }
}

}  // namespace

// As many stages as leave room for kWorkersPerProcessor; on devices with little shared memory, for one.
Status attention_occupancy(int32_t head_dim, Occupancy* occupancy) {
    if (head_dim != 64 && head_dim != 96 && head_dim != 128) {
        return head_dim_error(head_dim);
    }
    DeviceMemory memory{};
    Status status = device_memory(&memory);
    if (!status.ok()) {
        return status;
    }
    for (int workers = kWorkersPerProcessor; workers >= 1; --workers) {
        for (int stages = kMaxStages; stages >= (workers > 1 ? 3 : 2); --stages) {
            const int bytes = shared_bytes(head_dim, stages);
            if (bytes <= memory.per_block && workers * (bytes + memory.reserved) <= memory.per_processor) {
                *occupancy = {min(memory.processors * workers, kMaxWorkers), stages};
                return {};
            }
        }
    }
    return unsupported("expected " + std::to_string(shared_bytes(head_dim, 2)) +
                       " bytes of shared memory per thread block, the device has " + std::to_string(memory.per_block));
}

Status attention_workers(int32_t head_dim, int32_t* num_workers) {
    Occupancy occupancy{};
    Status status = attention_occupancy(head_dim, &occupancy);
    *num_workers = occupancy.num_workers;
    return status;
}

size_t pillar_attention_workspace_size(int32_t num_heads, int32_t num_kv_heads, int32_t head_dim) {
    return size_t{2} * kMaxWorkers * partial_floats(num_heads / num_kv_heads, head_dim) * sizeof(float);
}

Status launch_pillar_attention(const PillarAttentionParams& params, cudaStream_t stream) {
    if (Status status = check(params); !status.ok()) {
        return status;
    }
    Occupancy occupancy{};
    if (Status status = attention_occupancy(params.head_dim, &occupancy); !status.ok()) {
        return status;
    }
    return params.dtype == Dtype::kFloat16 ? launch_type<__half>(params, occupancy, stream)
                                           : launch_type<__nv_bfloat16>(params, occupancy, stream);
}

}  // namespace sparsespec
