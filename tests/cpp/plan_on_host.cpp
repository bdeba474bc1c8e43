// PillarPlan's division of work, compiled for the CPU: what test_pillar_plan.py asks of it.
#include <cstdint>
#include <vector>

#include "pillar_plan/division.cuh"

using namespace sparsespec;

namespace {

// The nine arrays of StepLengths, one after the other; row_start is one longer than the others.
StepLengths step_lengths(int32_t batch, const int32_t* lengths) {
    const int32_t* next = lengths + batch + 1;
    const auto take = [&] { return (next += batch) - batch; };
    StepLengths step{};
    step.max_batch_size = batch;
    step.row_start = lengths;
    step.phase = take();
    step.draft_index = take();
    step.score_rows = take();
    step.kv_len = take();
    step.recent_start = take();
    step.num_staying = take();
    step.num_moving = take();
    step.num_lookups = take();
    return step;
}

}  // namespace

extern "C" {

// units: [batch, 2] units, KV tiles of each.
void describe_slots(const int32_t* heads, int32_t batch, const int32_t* lengths, int32_t tile_rows, int32_t* units) {
    const StepLengths step = step_lengths(batch, lengths);
    const int rows = rows_per_tile(tile_rows, heads[0] / heads[1]);
    for (int slot = 0; slot < batch; ++slot) {
        const SlotUnits described(slot_work(slot_lengths(step, slot), slot), heads[1], rows);
        units[slot * 2] = described.num_units();
        units[slot * 2 + 1] = described.kv_tiles;
    }
}

// starts: [2, num_workers + 1] WorkerStart, of divided units and of whole ones; active_slots: [batch]; counts: slots at
// work of each list.
void plan(const int32_t* heads, int32_t batch, const int32_t* lengths, int32_t tile_rows, int32_t num_workers,
          WorkerStart* starts, int16_t* active_slots, int32_t* counts) {
    PillarPlanParams params{};
    params.num_heads = heads[0];
    params.num_kv_heads = heads[1];
    params.step = step_lengths(batch, lengths);
    const UnitShape shape = unit_shape(params, tile_rows);
    std::vector<SlotLengths> slots;
    std::vector<SlotUnits> units;
    int64_t total = 0;
    for (int slot = 0; slot < batch; ++slot) {
        slots.push_back(slot_lengths(params.step, slot));
        units.emplace_back(slot_work(slots[slot], slot), shape.num_kv_heads, shape.rows_per_tile);
        total += units[slot].cost();
    }
    std::vector<int64_t> cost_start;
    const auto list_slots = [&](bool whole) {
        SlotList listed{static_cast<int>(cost_start.size()), 0, 0};
        for (int slot = 0; slot < batch; ++slot) {
            if (units[slot].cost() > 0 && units[slot].stay_whole(total / num_workers) == whole) {
                active_slots[cost_start.size()] = static_cast<int16_t>(slot);
                cost_start.push_back(listed.cost);
                listed.cost += units[slot].cost();
                ++listed.count;
            }
        }
        return listed;
    };
    const SlotList divided = list_slots(false), whole = list_slots(true);
    const WorkList list{active_slots, cost_start.data(), slots.data(), shape, divided, whole, total / num_workers};
    for (int worker = 0; worker <= num_workers; ++worker) {
        starts[worker] = find_divided_start(list, worker, num_workers);
        starts[num_workers + 1 + worker] = find_whole_start(list, worker, num_workers);
    }
    for (int worker = 0; worker <= num_workers; ++worker) {
        if (starts[worker].tile > 0) {
            const UnitParts parts = find_parts(starts, num_workers, worker);
            starts[worker].first_worker = parts.first_worker;
            starts[worker].last_worker = parts.last_worker;
        }
    }
    counts[0] = divided.count;
    counts[1] = whole.count;
}

}  // extern "C"
