// The cut of a step's work into stretches of equal cost, one for each worker.
#pragma once

#include "pillar_plan/slot_work.cuh"

namespace sparsespec {

struct StepCost {
    int num_active;
    int64_t cost;
};

// All units of the slots at work, slot after slot.
struct WorkList {
    const int32_t* active_slots;  // [num_active], ascending
    const int64_t* cost_start;    // [num_active] where the cost of each slot begins
    StepCost step;
};

// The start nearest to the cost `within` of a unit, that is not inside the unit.
__host__ __device__ inline WorkerStart whole_units(int active, int unit, const SlotUnits& units, bool in_second_half) {
    WorkerStart start{};
    const bool ends_slot = in_second_half && unit + 1 == units.num_units();
    start.active = active + ends_slot;
    start.unit = ends_slot ? 0 : unit + in_second_half;
    return start;
}

// A place in a slot's units, by cost.
struct UnitPlace {
    int unit;
    int64_t cost;    // of the unit
    int64_t within;  // it, before the place
};

__host__ __device__ inline UnitPlace find_unit(const SlotUnits& units, int64_t rest) {
    const int64_t block_cost = units.num_block_units() * units.block_cost();
    if (rest < block_cost) {
        return {static_cast<int>(rest / units.block_cost()), units.block_cost(), rest % units.block_cost()};
    }
    rest -= block_cost;
    const int64_t head_cost = units.body_cost_before(units.body_tiles);
    const int head = static_cast<int>(rest / head_cost);
    rest %= head_cost;
    int low = 0, high = units.body_tiles;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (units.body_cost_before(middle) <= rest ? low : high) = middle;
    }
    return {units.num_block_units() + head * units.body_tiles + low, units.body_cost(low),
            rest - units.body_cost_before(low)};
}

// Where a worker starts whose work begins `rest` after that of a slot; `share` is every worker's part of the whole
// cost.
__host__ __device__ inline WorkerStart start_in_slot(const SlotUnits& units, int active, int64_t rest, int64_t share) {
    const UnitPlace place = find_unit(units, rest);
    if (place.cost <= kSmallUnit && place.cost * 2 <= share) {
        return whole_units(active, place.unit, units, place.within * 2 >= place.cost);
    }
    WorkerStart start{};
    start.active = active;
    start.unit = place.unit;
    const int overhead = units.overhead(place.unit);
    const int64_t tiles_cost = place.within > overhead ? place.within - overhead : 0;
    // The last row tile of a body may have fewer keys than it is weighed by.
    const int tile = static_cast<int>(tiles_cost / units.tile_cost(place.unit));
    start.tile = tile < units.kv_tiles ? tile : units.kv_tiles > 0 ? units.kv_tiles - 1 : 0;
    return start;
}

// Where in the list of all tiles a worker starts.
__host__ __device__ inline WorkerStart find_start(const PillarPlanParams& params, const WorkList& list, int worker,
                                                  const WorkerShape& shape) {
    const int64_t target = list.step.cost * worker / shape.num_workers;
    int low = 0, high = list.step.num_active;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (list.cost_start[middle] <= target ? low : high) = middle;
    }
    const SlotUnits units(slot_work(params.step, list.active_slots[low]), params.num_kv_heads,
                          rows_per_tile(shape.tile_rows, params.num_heads / params.num_kv_heads));
    return start_in_slot(units, low, target - list.cost_start[low], list.step.cost / shape.num_workers);
}

__host__ __device__ inline bool same_unit(const WorkerStart& a, const WorkerStart& b) {
    return a.active == b.active && a.unit == b.unit;
}

// Who shares the unit that starts[worker] lies within, tile > 0; among them may be workers without a tile of their own.
__host__ __device__ inline void find_parts(const WorkerStart* starts, int num_workers, int worker, WorkerStart* start) {
    int first = worker, last = worker;
    while (same_unit(starts[first - 1], *start) && starts[first - 1].tile > 0) {
        --first;
    }
    while (last < num_workers && same_unit(starts[last + 1], *start)) {
        ++last;
    }
    start->first_worker = first - 1;
    start->last_worker = last;
}

}  // namespace sparsespec
