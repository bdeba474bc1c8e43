// A thread block for each way plans a step: prefix sums of the slots' costs, then one thread per worker finds where it
// starts.
#pragma once

#include "common/block_scan.cuh"
#include "pillar_plan/division.cuh"

namespace sparsespec {

constexpr int kPlanThreads = kMaxPlannedBatch;

// The slots at work in ascending order, and where the cost of each begins.
__device__ inline StepCost gather_slots(const PillarPlanParams& params, int tile_rows, int32_t* active,
                                        int64_t* cost_start) {
    __shared__ int64_t cost_sums[32];
    __shared__ int active_sums[32];
    __shared__ StepCost total;
    const int slot = static_cast<int>(threadIdx.x);
    int64_t cost = 0;
    if (slot < params.step.max_batch_size) {
        const int step = rows_per_tile(tile_rows, params.num_heads / params.num_kv_heads);
        cost = SlotUnits(slot_work(params.step, slot), params.num_kv_heads, step).cost();
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

// All workers' starts but for who shares a unit with whom.
__device__ inline void find_starts(const PillarPlanParams& params, const WorkList& list, const WorkerShape& shape,
                                   WorkerStart* starts) {
    for (int worker = threadIdx.x; worker <= shape.num_workers; worker += kPlanThreads) {
        WorkerStart start{};
        start.active = list.step.num_active;
        if (worker < shape.num_workers && list.step.cost > 0) {
            start = find_start(params, list, worker, shape);
        }
        starts[worker] = start;
    }
    __syncthreads();
}

// The first worker that starts within each unit that workers share, and how many there are.
__device__ inline int list_shared(const WorkerStart* starts, int num_workers, int32_t* shared) {
    __shared__ int sums[32];
    __shared__ int total;
    const int worker = static_cast<int>(threadIdx.x);
    const bool is_first = worker > 0 && worker < num_workers && starts[worker].tile > 0 &&
                          !(same_unit(starts[worker - 1], starts[worker]) && starts[worker - 1].tile > 0);
    const int end = block_inclusive_sum(is_first ? 1 : 0, sums);
    if (is_first) {
        shared[end - 1] = worker;
    }
    if (threadIdx.x == kPlanThreads - 1) {
        total = end;
    }
    __syncthreads();
    if (worker >= total && worker < kMaxWorkers - 1) {
        shared[worker] = 0;
    }
    return total;
}

__global__ void __launch_bounds__(kPlanThreads)
pillar_plan_kernel(PillarPlanParams params, WorkerShape narrow, WorkerShape wide) {
    extern __shared__ int64_t cost_start[];  // [max_batch_size], then as many slots at work
    __shared__ WorkerStart starts[kMaxWorkers + 1];
    const Way way = static_cast<Way>(blockIdx.x);
    const WorkerShape shape = way == Way::kNarrow ? narrow : wide;
    int32_t* active = reinterpret_cast<int32_t*>(cost_start + params.step.max_batch_size);
    WayPlan& plan = *way_plan(params.plan, way);
    const StepCost step = gather_slots(params, shape.tile_rows, active, cost_start);
    find_starts(params, {active, cost_start, step}, shape, starts);
    for (int worker = threadIdx.x; worker <= shape.num_workers; worker += kPlanThreads) {
        WorkerStart start = starts[worker];
        if (start.tile > 0) {
            find_parts(starts, shape.num_workers, worker, &start);
        }
        start.slot = start.active < step.num_active ? active[start.active] : 0;
        plan.workers[worker] = {start, slot_lengths(params.step, start.slot)};
    }
    const int num_shared = list_shared(starts, shape.num_workers, plan.shared);
    if (threadIdx.x == 0) {
        plan.num_shared = num_shared;
    }
    // Slots not at work and workers not there: so that no part of the plan is left unwritten.
    for (int worker = shape.num_workers + 1 + threadIdx.x; worker <= kMaxWorkers; worker += kPlanThreads) {
        plan.workers[worker] = PlannedWorker{};
    }
    if (way == Way::kNarrow && threadIdx.x < params.step.max_batch_size) {
        active_slots(params.plan)[threadIdx.x] = threadIdx.x < step.num_active ? active[threadIdx.x] : -1;
    }
}

}  // namespace sparsespec
