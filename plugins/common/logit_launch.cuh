// Launches over rows of logits: what vocabularies they take, and a kernel for each type of logits.
#pragma once

#include <string>

#include "common/cuda_status.h"
#include "common/draw.cuh"
#include "common/dtype.h"

namespace sparsespec {

// launch: called with a number of the logits' type. op: for messages.
template <int kThreads, typename Launch>
Status launch_over_logits(const char* op, Dtype dtype, int vocab_size, const Launch& launch) {
    constexpr int kMost = kMaxTiles * kLogitTile<kThreads>;
    if (vocab_size < 1 || vocab_size > kMost) {
        return invalid_argument("expected a vocabulary of 1 to " + std::to_string(kMost) + " tokens, got " +
                                std::to_string(vocab_size));
    }
    switch (dtype) {
        case Dtype::kFloat16:
            launch(__half{});
            break;
        case Dtype::kBfloat16:
            launch(__nv_bfloat16{});
            break;
        default:
            launch(float{});
    }
    return cuda_status(cudaGetLastError(), op);
}

}  // namespace sparsespec
