#include "accept_drafts/kernel.cuh"
#include "common/logit_launch.cuh"

namespace sparsespec {

Status launch_accept_drafts(const AcceptDraftsParams& params, cudaStream_t stream) {
    return launch_over_logits<kAcceptThreads>("AcceptDrafts", params.logit_dtype, params.vocab_size, [&](auto logit) {
        accept_drafts_kernel<decltype(logit)><<<params.max_batch_size, kAcceptThreads, 0, stream>>>(params);
    });
}

}  // namespace sparsespec
