// The cut of a step's work into stretches of equal cost, one for each worker.
#pragma once

#include "pillar_plan/slot_work.cuh"

namespace sparsespec {

// Slots with the same kind of units, one after another in the plan's list of slots at work.
struct SlotList {
    int first;
    int count;
    int64_t cost;  // of all their units

    __host__ __device__ int end() const { return first + count; }
};

// What a step's units are cut by.
struct UnitShape {
    int num_kv_heads;
    int rows_per_tile;  // query rows
};

__host__ __device__ inline UnitShape unit_shape(const PillarPlanParams& params, int tile_rows) {
    return {params.num_kv_heads, rows_per_tile(tile_rows, params.num_heads / params.num_kv_heads)};
}

// All units of a step: those of slots with a unit that workers may share, then those of the others.
struct WorkList {
    const int16_t* active_slots;  // [whole.end()], of each list ascending
    const int64_t* cost_start;    // [whole.end()] where the cost of each slot begins in its list
    const SlotLengths* lengths;   // [max_batch_size] of slots
    UnitShape shape;
    SlotList divided;
    SlotList whole;
    int64_t share;  // every worker's part of the whole cost

    __host__ __device__ int64_t cost() const { return divided.cost + whole.cost; }
    // Of the slot at a place.
    __host__ __device__ SlotUnits units(int active) const {
        const int slot = active_slots[active];
        return SlotUnits(slot_work(lengths[slot], slot), shape.num_kv_heads, shape.rows_per_tile);
    }
    // The slot that a start is in; any where no slot is left.
    __host__ __device__ int slot_of(const WorkerStart& start) const {
        return start.active < whole.end() ? active_slots[start.active] : 0;
    }
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
    if (stays_whole(place.cost, share)) {
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

// Where in a list of units the cost `target` lies.
__host__ __device__ inline WorkerStart find_start(const WorkList& list, const SlotList& slots, int64_t target) {
    if (target >= slots.cost) {
        WorkerStart start{};
        start.active = slots.end();
        start.slot = list.slot_of(start);
        return start;
    }
    int low = slots.first, high = slots.end();
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (list.cost_start[middle] <= target ? low : high) = middle;
    }
    WorkerStart start = start_in_slot(list.units(low), low, target - list.cost_start[low], list.share);
    start.slot = list.slot_of(start);
    return start;
}

// The cost of a list's units before a start that is not inside a unit.
__host__ __device__ inline int64_t cost_before(const WorkList& list, const SlotList& slots, const WorkerStart& start) {
    if (start.active == slots.end()) {
        return slots.cost;
    }
    return list.cost_start[start.active] + list.units(start.active).cost_before(start.unit);
}

// Where a worker starts among the whole units; the one beyond the last, where they end. They are spread as evenly as
// they can be.
__host__ __device__ inline WorkerStart find_whole_start(const WorkList& list, int worker, int num_workers) {
    return find_start(list, list.whole, list.whole.cost * worker / num_workers);
}

// Where it starts among the others, which make up for what whole units are uneven. So all workers have much the same of
// both, and what is wrong about the costs of the one against the other makes no difference.
__host__ __device__ inline WorkerStart find_divided_start(const WorkList& list, int worker, int num_workers) {
    int64_t target;
    constexpr int kDropped = 2;  // by divisions
    if (list.whole.count == 0 || list.divided.cost <= int64_t{kSmallUnit + kDropped} * num_workers) {
        // a whole unit more could be more than a worker's part of the others, and starts would not ascend
        target = list.divided.cost * worker / num_workers;
    } else {
        const WorkerStart whole = find_whole_start(list, worker, num_workers);
        target = list.cost() * worker / num_workers - cost_before(list, list.whole, whole);
    }
    return find_start(list, list.divided, target > 0 ? target : 0);
}

// Who shares the unit that a worker starts within, tile > 0. Among them may be workers without a tile of their own.
struct UnitParts {
    int first_worker;
    int last_worker;
};

// Of starts[worker], among the starts [num_workers + 1] of a list. They ascend, and so are found by halving.
__host__ __device__ inline UnitParts find_parts(const WorkerStart* starts, int num_workers, int worker) {
    int before = 0, within = worker;  // the first that starts within the unit comes after the one, or is the other
    while (within - before > 1) {
        const int middle = (before + within) / 2;
        (same_unit(starts[middle], starts[worker]) && starts[middle].tile > 0 ? within : before) = middle;
    }
    int last = worker, beyond = num_workers + 1;
    while (beyond - last > 1) {
        const int middle = (last + beyond) / 2;
        (same_unit(starts[middle], starts[worker]) ? last : beyond) = middle;
    }
    return {within - 1, last};
}

}  // namespace sparsespec
