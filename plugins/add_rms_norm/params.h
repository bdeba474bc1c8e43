// AddRmsNorm: a residual addition and the norm that follows it, with the rows of hidden read and written once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/dtype.h"
#include "common/status.h"

namespace sparsespec {

// A thread block's registers hold a row of so many numbers.
constexpr int32_t kMaxHiddenSize = 32768;

// Most parts of what is added, and the longest rows that it may have several of.
constexpr int32_t kMostParts = 4;
constexpr int32_t kMaxSplitHiddenSize = 8192;

struct AddRmsNormParams {
    int32_t num_rows;
    int32_t num_parts;    // of delta, 1 to kMostParts
    int32_t hidden_size;  // a multiple of kVectorNumbers, at most kMaxHiddenSize
    float rms_norm_eps;
    Dtype dtype;  // kFloat16 or kBfloat16, of all tensors

    void* hidden;        // [num_rows, hidden_size] becomes its sum with all parts of delta
    const void* delta;   // [num_parts, num_rows, hidden_size]
    const void* weight;  // [hidden_size]
    void* normed;        // [num_rows, hidden_size]
};

Status launch_add_rms_norm(const AddRmsNormParams& params, cudaStream_t stream);

}  // namespace sparsespec
