#include <string>

#include "common/cuda_status.h"
#include "pillar_plan/kernel.cuh"

namespace sparsespec {

Status launch_pillar_plan(const PillarPlanParams& params, cudaStream_t stream) {
    const int batch = params.step.max_batch_size;
    if (batch < 1 || batch > kMaxPlannedBatch) {
        return invalid_argument("expected a batch of 1 to " + std::to_string(kMaxPlannedBatch) + " slots, got " +
                                std::to_string(batch));
    }
    int32_t num_workers = 0;
    Status status = attention_workers(params.head_dim, &num_workers);
    if (!status.ok()) {
        return status;
    }
    pillar_plan_kernel<<<1, kPlanThreads, batch * sizeof(int64_t), stream>>>(params, num_workers);
    return cuda_status(cudaGetLastError(), "PillarPlan");
}

}  // namespace sparsespec
