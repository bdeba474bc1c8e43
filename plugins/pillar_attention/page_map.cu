#include <cuda_runtime_api.h>

#include <string>

#include "common/cuda_status.h"
#include "pillar_attention/page_map.h"

namespace sparsespec {

namespace {

// Of the driver, which the library is not linked with.
using Encode = decltype(&cuTensorMapEncodeTiled);

Status find_encode(Encode* encode) {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    if (error == cudaSuccess && found == nullptr) {
        return unsupported("expected a driver that knows cuTensorMapEncodeTiled");
    }
    *encode = reinterpret_cast<Encode>(found);
    return cuda_status(error, "looking for cuTensorMapEncodeTiled");
}

}  // namespace

Status map_pages(const PillarAttentionParams& params, int block_bytes, CUtensorMap* map) {
    static Encode encode = nullptr;
    if (encode == nullptr) {
        if (Status status = find_encode(&encode); !status.ok()) {
            return status;
        }
    }
    const cuuint64_t row_bytes = static_cast<cuuint64_t>(params.head_dim) * 2, blocks = row_bytes / block_bytes;
    const cuuint64_t rows = cuuint64_t{2} * params.num_pages * params.num_kv_heads * params.page_size;
    const cuuint64_t to_values = params.num_kv_heads * params.page_size * row_bytes;
    // Numbers of a block, eight rows, blocks, keys and values, and all rows by eight.
    const cuuint64_t sizes[] = {static_cast<cuuint64_t>(block_bytes / 2), 8, blocks, 2, rows / 8};
    const cuuint64_t strides[] = {row_bytes, static_cast<cuuint64_t>(block_bytes), to_values, 8 * row_bytes};
    const cuuint32_t box[] = {static_cast<cuuint32_t>(block_bytes / 2), 8, static_cast<cuuint32_t>(blocks), 2,
                              static_cast<cuuint32_t>(params.page_size / 8)};
    const cuuint32_t steps[] = {1, 1, 1, 1, 1};
    const CUresult result = encode(
        map, params.dtype == Dtype::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5,
        params.kv_pool, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
        block_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) {
        return {StatusCode::kCuda, "PillarAttention: expected a pool that a tensor map can describe, got " +
                                       std::to_string(rows) + " rows, and the driver's error " +
                                       std::to_string(static_cast<int>(result))};
    }
    return {};
}

}  // namespace sparsespec
