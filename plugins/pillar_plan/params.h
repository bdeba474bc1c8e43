// PillarPlan: the work of one step divided over the workers of PillarAttention, once for all layers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/phase.h"
#include "common/status.h"

namespace sparsespec {

// Lengths of a step, [max_batch_size] int32 on the device, row_start one longer. See StepInputs in
// pillar_attention/inputs.py.
struct StepLengths {
    int32_t max_batch_size;
    const int32_t* row_start;
    const int32_t* phase;
    const int32_t* draft_index;
    const int32_t* score_rows;
    const int32_t* kv_len;
    const int32_t* recent_start;
    const int32_t* num_staying;
    const int32_t* num_moving;
    const int32_t* num_lookups;
};

struct PillarPlanParams {
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t head_dim;
    StepLengths step;
    int32_t* plan;  // [plan_size(max_batch_size)]
};

// A slot is weighed by a thread of one block.
constexpr int32_t kMaxPlannedBatch = 1024;

// As many workers as any device is given. The sizes of plan and workspace go by it, not by the device: an engine that
// was built on one runs on another.
constexpr int32_t kMaxWorkers = 512;

// A slot's numbers in StepLengths, in their order there.
struct SlotLengths {
    int32_t row_start;
    int32_t row_end;
    int32_t phase;
    int32_t draft_index;
    int32_t score_rows;
    int32_t kv_len;
    int32_t recent_start;
    int32_t num_staying;
    int32_t num_moving;
    int32_t num_lookups;
};

constexpr int32_t kLengths = sizeof(SlotLengths) / sizeof(int32_t);

// Where a worker starts.
struct alignas(16) WorkerStart {
    int32_t active;        // place in the plan's list of slots at work; their number where no work is left
    int32_t unit;          // which of the slot's units, see slot_work.cuh
    int32_t tile;          // first tile of that unit; above 0 where an earlier worker started it
    int32_t first_worker;  // of the unit, if tile > 0
    int32_t last_worker;   // of the unit, if tile > 0
    int32_t slot;          // the one at work at place `active`
    uint32_t arrived;      // of the unit that starts in this worker and goes on: parts finished. 0 between launches
    int32_t unused;        // 0
};

__host__ __device__ inline bool same_unit(const WorkerStart& a, const WorkerStart& b) {
    return a.active == b.active && a.unit == b.unit;
}

// A worker in the plan, and the lengths of the slot that it starts in: a warp reads them at once.
struct alignas(128) PlannedWorker {
    WorkerStart start;
    SlotLengths lengths;
};

// How PillarAttention divides a device, and rows.
struct WorkerShape {
    int32_t num_workers;  // thread blocks, as many as fit at once
    int32_t tile_rows;    // query rows times heads of a GQA group that share a KV tile
};

// There are two ways to work: many workers with small row tiles; and few with large ones, for prompts and large groups,
// whose rows would else read the same keys again and again. A step is planned for both, since only the launch of the
// attention knows how many rows there are.
enum class Way : int32_t { kNarrow, kWide };
constexpr int32_t kWays = 2;

// Wide workers are one on a multiprocessor.
constexpr int32_t most_workers(Way way) {
    return way == Way::kNarrow ? kMaxWorkers : kMaxWorkers / 2;
}

// A worker has a stretch of each of two lists of units: of those that workers may share, which is cut anywhere, and of
// small ones that stay whole.
enum class Units : int32_t { kDivided, kWhole };
constexpr int32_t kUnitLists = 2;

// The division of a step for one way to work.
struct WayPlan {
    PlannedWorker workers[kUnitLists][kMaxWorkers + 1];
    int32_t num_shared;               // units that workers share
    int32_t shared[kMaxWorkers - 1];  // for each of them the first worker that starts within it; ascending
};

// A plan is this for each way; then for each way in 16 bits the slots at work, those of each list in ascending order.
// In int32.
constexpr int64_t kPlanHead = kWays * sizeof(WayPlan) / sizeof(int32_t);

constexpr int64_t plan_size(int64_t max_batch_size) {
    return kPlanHead + max_batch_size;
}

__host__ __device__ inline WayPlan* way_plan(int32_t* plan, Way way) {
    return reinterpret_cast<WayPlan*>(plan) + static_cast<int>(way);
}

__host__ __device__ inline PlannedWorker* planned_workers(int32_t* plan, Way way, Units units = Units::kDivided) {
    return way_plan(plan, way)->workers[static_cast<int>(units)];
}

// [max_batch_size]
__host__ __device__ inline int16_t* active_slots(int32_t* plan, Way way, int32_t max_batch_size) {
    return reinterpret_cast<int16_t*>(plan + kPlanHead) + static_cast<int>(way) * max_batch_size;
}
static_assert(kMaxPlannedBatch <= INT16_MAX, "a slot in 16 bits");

// How PillarAttention works on the current device, either way. Both launches ask this.
Status attention_shape(int32_t head_dim, Way way, WorkerShape* shape);

Status launch_pillar_plan(const PillarPlanParams& params, cudaStream_t stream);

}  // namespace sparsespec
