#include <string>

#include "common/cuda_status.h"
#include "sample_rows/kernel.cuh"

namespace sparsespec {

Status launch_sample_rows(const SampleRowsParams& params, cudaStream_t stream) {
    constexpr int kMost = kMaxTiles * kLogitTile<kSampleThreads>;
    if (params.vocab_size < 1 || params.vocab_size > kMost) {
        return invalid_argument("expected a vocabulary of 1 to " + std::to_string(kMost) + " tokens, got " +
                                std::to_string(params.vocab_size));
    }
    if (params.num_logits == 0) {
        return {};
    }
    switch (params.logit_dtype) {
        case Dtype::kFloat16:
            sample_rows_kernel<__half><<<params.num_logits, kSampleThreads, 0, stream>>>(params);
            break;
        case Dtype::kBfloat16:
            sample_rows_kernel<__nv_bfloat16><<<params.num_logits, kSampleThreads, 0, stream>>>(params);
            break;
        default:
            sample_rows_kernel<float><<<params.num_logits, kSampleThreads, 0, stream>>>(params);
    }
    return cuda_status(cudaGetLastError(), "SampleRows");
}

}  // namespace sparsespec
