#include <string>

#include "common/cuda_status.h"
#include "pillar_plan/kernel.cuh"

namespace sparsespec {

namespace {

// A thread for each slot, and for each worker.
template <int kThreads>
cudaError_t launch_plan(const PillarPlanParams& params, const WorkerShape (&shapes)[kWays], cudaStream_t stream) {
    static_assert(kThreads >= kMaxWorkers, "list_shared has a thread for each worker");
    constexpr int kSlotBytes = static_cast<int>(PlanMemory::kSlotBytes);
    // The same for all batches: another thread may launch one between this and the launch.
    const cudaError_t error = cudaFuncSetAttribute(pillar_plan_kernel<kThreads>,
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, kThreads * kSlotBytes);
    if (error != cudaSuccess) {
        return error;
    }
    pillar_plan_kernel<kThreads>
        <<<dim3(kWays, 2), kThreads, params.step.max_batch_size * kSlotBytes, stream>>>(params, shapes[0], shapes[1]);
    return cudaGetLastError();
}

}  // namespace

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
    const cudaError_t error = batch <= kMaxWorkers ? launch_plan<kMaxWorkers>(params, shapes, stream)
                                                   : launch_plan<kMaxPlannedBatch>(params, shapes, stream);
    return cuda_status(error, "PillarPlan");
}

}  // namespace sparsespec
