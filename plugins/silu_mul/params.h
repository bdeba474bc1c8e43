// SiluMul: the activation of a gated MLP, silu(gate) * up.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/dtype.h"
#include "common/status.h"

namespace sparsespec {

constexpr int32_t kMaxIntermediateSize = 1 << 20;

struct SiluMulParams {
    int32_t num_rows;
    int32_t intermediate_size;  // a multiple of kVectorNumbers, at most kMaxIntermediateSize
    Dtype dtype;                // kFloat16 or kBfloat16, of both tensors

    const void* gate_up;  // [num_rows, 2 * intermediate_size], the gate first
    void* output;         // [num_rows, intermediate_size]
};

Status launch_silu_mul(const SiluMulParams& params, cudaStream_t stream);

}  // namespace sparsespec
