// A thread block for each way plans a step: prefix sums of the slots' costs, then one thread per worker finds where it
// starts.
#pragma once

#include "common/block_scan.cuh"
#include "pillar_plan/division.cuh"

namespace sparsespec {

constexpr int kPlanThreads = kMaxPlannedBatch;

// A worker's start, and the lengths of the slot that it starts in, to the plan.
__device__ inline void put_worker(const PillarPlanParams& params, const WorkList& list, WorkerStart start,
                                  PlannedWorker& planned) {
    start.slot = start.active < list.whole.end() ? list.active_slots[start.active] : 0;
    planned = {start, slot_lengths(params.step, start.slot)};
}

// The step's list of work: the slots at work, those with units that workers may share first, and where the cost of each
// begins.
__device__ inline WorkList list_work(const PillarPlanParams& params, const WorkerShape& shape, int16_t* active,
                                     int64_t* cost_start) {
    __shared__ int64_t sums[32];
    __shared__ int64_t totals[3];
    constexpr int kHalf = 32;  // of a pair of counts
    const int slot = static_cast<int>(threadIdx.x);
    const bool is_last = threadIdx.x == kPlanThreads - 1;
    const SlotUnits units = units_of(params, min(slot, params.step.max_batch_size - 1), shape.tile_rows);
    const int64_t cost = slot < params.step.max_batch_size ? units.cost() : 0;
    const int64_t cost_end = block_inclusive_sum(cost, sums);
    if (is_last) {
        totals[0] = cost_end;
    }
    __syncthreads();
    const int64_t share = totals[0] / shape.num_workers;
    const bool is_active = cost > 0, is_whole = is_active && units.stay_whole(share);
    const int64_t whole_end = block_inclusive_sum(is_whole ? cost : 0, sums);
    const int64_t counts = block_inclusive_sum(int64_t{is_active} << kHalf | int64_t{is_whole}, sums);
    if (is_last) {
        totals[1] = whole_end;
        totals[2] = counts;
    }
    __syncthreads();
    const auto low = [](int64_t pair) { return static_cast<int>(pair & 0xffffffff); };
    const auto high = [](int64_t pair) { return static_cast<int>(pair >> kHalf); };
    const int num_whole = low(totals[2]), num_divided = high(totals[2]) - num_whole;
    if (is_active) {
        const int place = is_whole ? num_divided + low(counts) - 1 : high(counts) - low(counts) - 1;
        active[place] = static_cast<int16_t>(slot);
        cost_start[place] = (is_whole ? whole_end : cost_end - whole_end) - cost;
    }
    __syncthreads();
    return {active, cost_start, {0, num_divided, totals[0] - totals[1]}, {num_divided, num_whole, totals[1]}, share};
}

// Where workers start in both lists.
struct Starts {
    WorkerStart of[kUnitLists][kMaxWorkers + 1];
};

// All workers' starts but for who shares a unit with whom. A thread for each.
__device__ inline void find_starts(const PillarPlanParams& params, const WorkList& list, const WorkerShape& shape,
                                   Starts& starts) {
    const int num_starts = shape.num_workers + 1;
    for (int index = threadIdx.x; index < kUnitLists * num_starts; index += kPlanThreads) {
        if (index < num_starts) {
            starts.of[static_cast<int>(Units::kDivided)][index] = find_divided_start(params, list, index, shape);
        } else {
            const int worker = index - num_starts;
            starts.of[static_cast<int>(Units::kWhole)][worker] = find_whole_start(params, list, worker, shape);
        }
    }
    __syncthreads();
}

// To the plan, with who shares the units of the one list.
__device__ inline void put_starts(const PillarPlanParams& params, const WorkList& list, const WorkerShape& shape,
                                  const Starts& starts, WayPlan& plan) {
    const int num_starts = shape.num_workers + 1;
    for (int index = threadIdx.x; index < kUnitLists * num_starts; index += kPlanThreads) {
        const int of = index < num_starts ? 0 : 1, worker = index - of * num_starts;
        WorkerStart start = starts.of[of][worker];
        if (start.tile > 0) {
            find_parts(starts.of[of], shape.num_workers, worker, &start);
        }
        put_worker(params, list, start, plan.workers[of][worker]);
    }
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

// So that no part of the plan is left unwritten, and before all else: this takes no time then. Neighbours by
// neighbouring threads: a worker for each thread would take as long as all the rest.
__device__ inline void clear_workers(PlannedWorker (&workers)[kUnitLists][kMaxWorkers + 1]) {
    int4* numbers = reinterpret_cast<int4*>(&workers);
    for (int index = threadIdx.x; index < static_cast<int>(sizeof(workers) / sizeof(int4)); index += kPlanThreads) {
        numbers[index] = {0, 0, 0, 0};
    }
}

__global__ void __launch_bounds__(kPlanThreads)
pillar_plan_kernel(PillarPlanParams params, WorkerShape narrow, WorkerShape wide) {
    extern __shared__ int64_t cost_start[];  // [max_batch_size], then as many slots at work
    __shared__ Starts starts;
    const Way way = static_cast<Way>(blockIdx.x);
    const int batch = params.step.max_batch_size;
    const WorkerShape shape = way == Way::kNarrow ? narrow : wide;
    int16_t* active = reinterpret_cast<int16_t*>(cost_start + batch);
    WayPlan& plan = *way_plan(params.plan, way);
    clear_workers(plan.workers);
    const WorkList list = list_work(params, shape, active, cost_start);
    find_starts(params, list, shape, starts);
    put_starts(params, list, shape, starts, plan);
    const int num_shared = list_shared(starts.of[static_cast<int>(Units::kDivided)], shape.num_workers, plan.shared);
    if (threadIdx.x == 0) {
        plan.num_shared = num_shared;
    }
    if (threadIdx.x < batch) {
        active_slots(params.plan, way, batch)[threadIdx.x] = threadIdx.x < list.whole.end() ? active[threadIdx.x] : -1;
    }
    __threadfence();  // the attention reads the plan before it waits for launches before it
}

}  // namespace sparsespec
