#include <string>

#include "common/cuda_status.h"
#include "step_rows/kernel.cuh"

namespace sparsespec {

Status launch_step_rows(const StepRowsParams& params, cudaStream_t stream) {
    if (params.max_lookups > kMaxStepLookups) {
        return invalid_argument("expected at most " + std::to_string(kMaxStepLookups) + " lookups, got " +
                                std::to_string(params.max_lookups));
    }
    step_rows_kernel<<<params.max_batch_size + 1, kStepRowsThreads, 0, stream>>>(params);
    return cuda_status(cudaGetLastError(), "StepRows");
}

}  // namespace sparsespec
