#include <string>

#include "accept_drafts/kernel.cuh"
#include "common/cuda_status.h"

namespace sparsespec {

Status launch_accept_drafts(const AcceptDraftsParams& params, cudaStream_t stream) {
    constexpr int kMost = kMaxTiles * kLogitTile<kAcceptThreads>;
    if (params.vocab_size < 1 || params.vocab_size > kMost) {
        return invalid_argument("expected a vocabulary of 1 to " + std::to_string(kMost) + " tokens, got " +
                                std::to_string(params.vocab_size));
    }
    switch (params.logit_dtype) {
        case Dtype::kFloat16:
            accept_drafts_kernel<__half><<<params.max_batch_size, kAcceptThreads, 0, stream>>>(params);
            break;
        case Dtype::kBfloat16:
            accept_drafts_kernel<__nv_bfloat16><<<params.max_batch_size, kAcceptThreads, 0, stream>>>(params);
            break;
        default:
            accept_drafts_kernel<float><<<params.max_batch_size, kAcceptThreads, 0, stream>>>(params);
    }
    return cuda_status(cudaGetLastError(), "AcceptDrafts");
}

}  // namespace sparsespec
