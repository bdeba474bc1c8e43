// A thread block for each way plans a step: prefix sums of the slots' costs, then one thread per worker finds where it
// starts. Another one clears what no worker has.
#pragma once

#include "common/block_scan.cuh"
#include "pillar_plan/division.cuh"

namespace sparsespec {

// Dynamic shared memory of a block.
struct PlanMemory {
    int64_t* cost_start;    // [max_batch_size] as WorkList has it
    SlotLengths* lengths;   // [max_batch_size]
    int16_t* active_slots;  // [max_batch_size] as WorkList has it

    static constexpr size_t kSlotBytes = sizeof(int64_t) + sizeof(SlotLengths) + sizeof(int16_t);

    __device__ __forceinline__ PlanMemory(int64_t* memory, int batch)
        : cost_start(memory),
          lengths(reinterpret_cast<SlotLengths*>(cost_start + batch)),
          active_slots(reinterpret_cast<int16_t*>(lengths + batch)) {}
};

// The step's list of work. A thread for each slot.
template <int kThreads>
__device__ inline WorkList list_work(const PillarPlanParams& params, const UnitShape& shape, int num_workers,
                                     const PlanMemory& memory) {
    __shared__ int64_t cost_sums[kThreads / 32], whole_sums[kThreads / 32];
    __shared__ WarpSums<kThreads> counts_sums;
    constexpr int kHalf = 16;  // of a pair of counts
    static_assert(kMaxPlannedBatch < 1 << kHalf, "a count in 16 bits");
    const int slot = static_cast<int>(threadIdx.x);
    const bool exists = slot < params.step.max_batch_size;
    const SlotLengths lengths = slot_lengths(params.step, exists ? slot : 0);
    const SlotUnits units(slot_work(lengths, slot), shape.num_kv_heads, shape.rows_per_tile);
    if (exists) {
        memory.lengths[slot] = lengths;
    }
    const int64_t cost = exists ? units.cost() : 0;
    const InclusiveSum costs = block_inclusive_sum<kThreads>(cost, cost_sums);
    const int64_t share = costs.total / num_workers;
    const bool is_active = cost > 0, is_whole = is_active && units.stay_whole(share);
    const InclusiveSum whole = block_inclusive_sum<kThreads>(is_whole ? cost : 0, whole_sums);
    const BlockSums counts = block_scan<kThreads>(uint32_t{is_active} << kHalf | uint32_t{is_whole}, counts_sums);
    const auto low = [](uint32_t pair) { return static_cast<int>(pair & 0xffff); };
    const auto high = [](uint32_t pair) { return static_cast<int>(pair >> kHalf); };
    const int num_whole = low(counts.total), num_divided = high(counts.total) - num_whole;
    if (is_active) {
        const int place = is_whole ? num_divided + low(counts.before) : high(counts.before) - low(counts.before);
        memory.active_slots[place] = static_cast<int16_t>(slot);
        memory.cost_start[place] = (is_whole ? whole.end : costs.end - whole.end) - cost;
    }
    __syncthreads();
    const SlotList divided{0, num_divided, costs.total - whole.total};
    const SlotList stay_whole{num_divided, num_whole, whole.total};
    return {memory.active_slots, memory.cost_start, memory.lengths, shape, divided, stay_whole, share};
}

// Where workers start in both lists.
struct Starts {
    WorkerStart of[kUnitLists][kMaxWorkers + 1];
};

// All workers' starts, and who shares the units of the one list. A thread for each.
template <int kThreads>
__device__ inline void find_starts(const WorkList& list, int num_workers, Starts& starts) {
    const int num_starts = num_workers + 1;
    WorkerStart(&divided)[kMaxWorkers + 1] = starts.of[static_cast<int>(Units::kDivided)];
    WorkerStart(&whole)[kMaxWorkers + 1] = starts.of[static_cast<int>(Units::kWhole)];
    for (int index = threadIdx.x; index < kUnitLists * num_starts; index += kThreads) {
        if (index < num_starts) {
            divided[index] = find_divided_start(list, index, num_workers);
        } else {
            whole[index - num_starts] = find_whole_start(list, index - num_starts, num_workers);
        }
    }
    __syncthreads();
    for (int worker = threadIdx.x; worker < num_starts; worker += kThreads) {
        if (divided[worker].tile > 0) {
            const UnitParts parts = find_parts(divided, num_workers, worker);
            divided[worker].first_worker = parts.first_worker;
            divided[worker].last_worker = parts.last_worker;
        }
    }
    __syncthreads();
}

// To the plan, a worker by a warp: each lane has a number, its start's or of the lengths of the slot that it starts in.
// A worker for each thread would take as long as all the rest.
template <int kThreads>
__device__ inline void put_starts(const SlotLengths* lengths, int num_workers, const Starts& starts, WayPlan& plan) {
    constexpr int kStartNumbers = sizeof(WorkerStart) / sizeof(int32_t);
    const int lane = threadIdx.x % 32, length = lane - kStartNumbers, num_starts = num_workers + 1;
    for (int index = threadIdx.x / 32; index < kUnitLists * num_starts; index += kThreads / 32) {
        const int list = index >= num_starts, worker = index - list * num_starts;
        const WorkerStart& start = starts.of[list][worker];
        const int32_t* of_start = reinterpret_cast<const int32_t*>(&start);
        const int32_t* of_slot = reinterpret_cast<const int32_t*>(&lengths[start.slot]);
        const int32_t number = length < 0 ? of_start[lane] : length < kLengths ? of_slot[length] : 0;
        reinterpret_cast<int32_t*>(&plan.workers[list][worker])[lane] = number;
    }
}

// The first worker that starts within each unit that workers share, and how many there are.
template <int kThreads>
__device__ inline void list_shared(const WorkerStart* starts, int num_workers, WayPlan& plan) {
    __shared__ WarpSums<kThreads> sums;
    const int worker = static_cast<int>(threadIdx.x);
    const bool is_first = worker > 0 && worker < num_workers && starts[worker].tile > 0 &&
                          !(same_unit(starts[worker - 1], starts[worker]) && starts[worker - 1].tile > 0);
    const BlockSums shared = block_scan<kThreads>(uint32_t{is_first}, sums);
    if (is_first) {
        plan.shared[shared.before] = worker;
    }
    if (worker >= shared.total && worker < kMaxWorkers - 1) {
        plan.shared[worker] = 0;
    }
    if (worker == 0) {
        plan.num_shared = static_cast<int32_t>(shared.total);
    }
}

// Workers that there are not, by a block of its own: no part of the plan is left unwritten.
template <int kThreads>
__device__ inline void clear_others(int num_workers, WayPlan& plan) {
    for (int list = 0; list < kUnitLists; ++list) {
        int4* numbers = reinterpret_cast<int4*>(&plan.workers[list][num_workers + 1]);
        const int count = (kMaxWorkers - num_workers) * static_cast<int>(sizeof(PlannedWorker) / sizeof(int4));
        for (int index = threadIdx.x; index < count; index += kThreads) {
            numbers[index] = {0, 0, 0, 0};
        }
    }
}

// Block (way, 0) plans, (way, 1) clears.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
pillar_plan_kernel(PillarPlanParams params, WorkerShape narrow, WorkerShape wide) {
    extern __shared__ int64_t memory[];
    __shared__ Starts starts;
    const Way way = static_cast<Way>(blockIdx.x);
    const int batch = params.step.max_batch_size;
    const WorkerShape shape = way == Way::kNarrow ? narrow : wide;
    WayPlan& plan = *way_plan(params.plan, way);
    if (blockIdx.y > 0) {
        clear_others<kThreads>(shape.num_workers, plan);
        return;
    }
    const PlanMemory of_slots(memory, batch);
    const WorkList list = list_work<kThreads>(params, unit_shape(params, shape.tile_rows), shape.num_workers, of_slots);
    find_starts<kThreads>(list, shape.num_workers, starts);
    put_starts<kThreads>(list.lengths, shape.num_workers, starts, plan);
    list_shared<kThreads>(starts.of[static_cast<int>(Units::kDivided)], shape.num_workers, plan);
    if (threadIdx.x < batch) {
        active_slots(params.plan, way, batch)[threadIdx.x] =
            threadIdx.x < list.whole.end() ? list.active_slots[threadIdx.x] : -1;
    }
    __threadfence();  // the attention reads the plan before it waits for launches before it
}

}  // namespace sparsespec
