// One thread block plans a step: prefix sums of the slots' costs, then one thread per worker finds where it starts.
#pragma once

#include "common/block_scan.cuh"
#include "pillar_plan/slot_work.cuh"

namespace sparsespec {

constexpr int kPlanThreads = 1024;

// The slots at work in ascending order, and where the cost of each begins; returns {their number, the whole cost}.
struct StepCost {
    int num_active;
    int64_t cost;
};

__device__ inline StepCost gather_slots(const PillarPlanParams& params, int32_t* active_slots, int64_t* cost_start) {
    __shared__ int64_t cost_sums[32];
    __shared__ int active_sums[32];
    __shared__ StepCost total;
    if (threadIdx.x == 0) {
        total = {0, 0};
    }
    __syncthreads();
    const int group = params.num_heads / params.num_kv_heads;
    for (int first = 0; first < params.step.max_batch_size; first += kPlanThreads) {
        const int slot = first + static_cast<int>(threadIdx.x);
        int64_t cost = 0;
        if (slot < params.step.max_batch_size) {
            cost = SlotUnits(slot_work(params.step, slot), params.num_kv_heads, group).cost();
        }
        const int64_t cost_end = total.cost + block_inclusive_sum(cost, cost_sums);
        const int active_end = total.num_active + block_inclusive_sum(cost > 0 ? 1 : 0, active_sums);
        if (cost > 0) {
            active_slots[active_end - 1] = slot;
            cost_start[active_end - 1] = cost_end - cost;
        }
        __syncthreads();
        if (threadIdx.x == kPlanThreads - 1) {
            total = {active_end, cost_end};
        }
        __syncthreads();
    }
    return total;
}

// The start nearest to the cost `within` of a unit, that is not inside the unit.
__device__ inline WorkerStart whole_units(int active, int unit, const SlotUnits& units, bool in_second_half) {
    WorkerStart start{};
    const bool ends_slot = in_second_half && unit + 1 == units.num_units();
    start.active = active + ends_slot;
    start.unit = ends_slot ? 0 : unit + in_second_half;
    return start;
}

// Where a worker starts whose work begins `rest` after that of a slot; `share` is every worker's part of the whole
// cost.
__device__ inline WorkerStart start_in_slot(const SlotUnits& units, int active, int64_t rest, int64_t share) {
    const int64_t block_cost = units.num_block_units() * units.block_cost();
    int64_t unit_cost = units.block_cost();
    int unit = 0;
    if (rest >= block_cost) {
        rest -= block_cost;
        unit = units.num_block_units();
        unit_cost = units.body_cost();
    }
    unit += static_cast<int>(rest / unit_cost);
    const int64_t within = rest % unit_cost;
    if (unit_cost * kWholeUnits <= share) {
        return whole_units(active, unit, units, within * 2 >= unit_cost);
    }
    WorkerStart start{};
    start.active = active;
    start.unit = unit;
    start.tile = static_cast<int>(max(int64_t{0}, within - kUnitOverhead) / units.tile_cost(unit));
    return start;
}

// Where in the list of all tiles a worker starts.
__device__ inline WorkerStart find_start(const PillarPlanParams& params, const int32_t* active_slots,
                                         const int64_t* cost_start, StepCost step, int worker, int num_workers) {
    const int64_t target = step.cost * worker / num_workers;
    int low = 0, high = step.num_active;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (cost_start[middle] <= target ? low : high) = middle;
    }
    const SlotUnits units(slot_work(params.step, active_slots[low]), params.num_kv_heads,
                          params.num_heads / params.num_kv_heads);
    return start_in_slot(units, low, target - cost_start[low], step.cost / num_workers);
}

__device__ inline bool same_unit(const WorkerStart& a, const WorkerStart& b) {
    return a.active == b.active && a.unit == b.unit;
}

// Who shares the unit that starts[worker] lies within, tile > 0. Workers without a tile of their own do not count.
__device__ inline void find_parts(const WorkerStart* starts, int num_workers, int worker, WorkerStart* start) {
    int first = worker, last = worker;
    while (same_unit(starts[first - 1], *start) && starts[first - 1].tile > 0) {
        --first;
    }
    while (last < num_workers && same_unit(starts[last + 1], *start)) {
        ++last;
    }
    int num_parts = 2;
    for (int other = first + 1; other <= last; ++other) {
        num_parts += starts[other].tile != starts[other - 1].tile;
    }
    start->first_worker = first - 1;
    start->last_worker = last;
    start->num_parts = num_parts;
}

__global__ void __launch_bounds__(kPlanThreads)
pillar_plan_kernel(PillarPlanParams params, int num_workers) {
    extern __shared__ int64_t cost_start[];  // [max_batch_size]
    __shared__ WorkerStart starts[kMaxWorkers + 1];
    int32_t* active_slots = params.plan + (kMaxWorkers + 1) * (sizeof(WorkerStart) / sizeof(int32_t));
    const StepCost step = gather_slots(params, active_slots, cost_start);
    for (int worker = threadIdx.x; worker <= num_workers; worker += kPlanThreads) {
        WorkerStart start{};
        start.active = step.num_active;
        if (worker < num_workers && step.cost > 0) {
            start = find_start(params, active_slots, cost_start, step, worker, num_workers);
        }
        starts[worker] = start;
    }
    __syncthreads();
    for (int worker = threadIdx.x; worker <= num_workers; worker += kPlanThreads) {
        WorkerStart start = starts[worker];
        if (start.tile > 0) {
            find_parts(starts, num_workers, worker, &start);
        }
        reinterpret_cast<WorkerStart*>(params.plan)[worker] = start;
    }
    // Slots not at work and workers not there: so that no part of the plan is left unwritten.
    for (int index = step.num_active + threadIdx.x; index < params.step.max_batch_size; index += kPlanThreads) {
        active_slots[index] = -1;
    }
    for (int worker = num_workers + 1 + threadIdx.x; worker <= kMaxWorkers; worker += kPlanThreads) {
        reinterpret_cast<WorkerStart*>(params.plan)[worker] = WorkerStart{};
    }
}

}  // namespace sparsespec
