// One thread block plans a step: prefix sums of the slots' costs, then one thread per worker finds where it starts.
#pragma once

#include "common/block_scan.cuh"
#include "pillar_plan/division.cuh"

namespace sparsespec {

constexpr int kPlanThreads = kMaxPlannedBatch;

// The slots at work in ascending order, and where the cost of each begins.
__device__ inline StepCost gather_slots(const PillarPlanParams& params, int32_t* active, int64_t* cost_start) {
    __shared__ int64_t cost_sums[32];
    __shared__ int active_sums[32];
    __shared__ StepCost total;
    const int slot = static_cast<int>(threadIdx.x);
    int64_t cost = 0;
    if (slot < params.step.max_batch_size) {
        const int group = params.num_heads / params.num_kv_heads;
        cost = SlotUnits(slot_work(params.step, slot), params.num_kv_heads, group).cost();
    }
    const int64_t cost_end = block_inclusive_sum(cost, cost_sums);
    const int active_end = block_inclusive_sum(cost > 0 ? 1 : 0, active_sums);
    if (cost > 0) {
        active[active_end - 1] = slot;
        cost_start[active_end - 1] = cost_end - cost;
    }
    if (threadIdx.x == kPlanThreads - 1) {
        total = {active_end, cost_end};
    }
    __syncthreads();
    return total;
}

__global__ void __launch_bounds__(kPlanThreads)
pillar_plan_kernel(PillarPlanParams params, int num_workers) {
    extern __shared__ int64_t cost_start[];  // [max_batch_size]
    __shared__ WorkerStart starts[kMaxWorkers + 1];
    int32_t* active = active_slots(params.plan);
    WorkerStart* planned = worker_starts(params.plan);
    const StepCost step = gather_slots(params, active, cost_start);
    for (int worker = threadIdx.x; worker <= num_workers; worker += kPlanThreads) {
        WorkerStart start{};
        start.active = step.num_active;
        if (worker < num_workers && step.cost > 0) {
            start = find_start(params, {active, cost_start, step}, worker, num_workers);
        }
        starts[worker] = start;
    }
    __syncthreads();
    for (int worker = threadIdx.x; worker <= num_workers; worker += kPlanThreads) {
        WorkerStart start = starts[worker];
        if (start.tile > 0) {
            find_parts(starts, num_workers, worker, &start);
        }
        planned[worker] = start;
    }
    // Slots not at work and workers not there: so that no part of the plan is left unwritten.
    for (int index = step.num_active + threadIdx.x; index < params.step.max_batch_size; index += kPlanThreads) {
        active[index] = -1;
    }
    for (int worker = num_workers + 1 + threadIdx.x; worker <= kMaxWorkers; worker += kPlanThreads) {
        planned[worker] = WorkerStart{};
    }
}

}  // namespace sparsespec
