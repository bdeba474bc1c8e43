#include "common/logit_launch.cuh"
#include "sample_rows/kernel.cuh"

namespace sparsespec {

Status launch_sample_rows(const SampleRowsParams& params, cudaStream_t stream) {
    return launch_over_logits<kSampleThreads>("SampleRows", params.logit_dtype, params.vocab_size, [&](auto logit) {
        if (params.num_logits > 0) {
            sample_rows_kernel<decltype(logit)><<<params.num_logits, kSampleThreads, 0, stream>>>(params);
        }
    });
}

}  // namespace sparsespec
