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
    WorkerShape shapes[kWays];
    for (const Way way : {Way::kNarrow, Way::kWide}) {
        Status status = attention_shape(params.head_dim, way, &shapes[static_cast<int>(way)]);
        if (!status.ok()) {
            return status;
        }
    }
    const size_t bytes = batch * (sizeof(int64_t) + sizeof(int16_t));
    pillar_plan_kernel<<<kWays, kPlanThreads, bytes, stream>>>(params, shapes[0], shapes[1]);
    return cuda_status(cudaGetLastError(), "PillarPlan");
}

}  // namespace sparsespec
