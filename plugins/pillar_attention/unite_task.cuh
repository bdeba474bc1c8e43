// What a thread block that puts parts together is at: a shared unit, or some of its rows; and how its warps and lanes
// share those.
#pragma once

#include "pillar_attention/merge.cuh"

namespace sparsespec {

// Warps of a block: units of wide workers have more rows.
__host__ __device__ constexpr int unite_warps(Way way) {
    return way == Way::kNarrow ? 4 : 8;
}
// Blocks on a multiprocessor: as many as fit.
__host__ __device__ constexpr int unite_blocks(Way way) {
    return way == Way::kNarrow ? 4 : 3;
}
// Up to so many blocks for a unit those that find no rows leave at once. Of more they stay: the next launch's copies,
// which would begin the sooner, would be in the way of what others load.
constexpr int kFewSlices = 4;
// Items are parts of rows, those of one row, then those of the next: a lane loads its four columns of so many at once,
// and knows, for the other lanes of the row, all about one of them.
constexpr int kUniteItems = 8;

// How a warp's lanes share rows: of an item each has four columns.
template <int kHeadDim>
struct UniteLane {
    static constexpr int kRowLanes = kHeadDim > 64 ? 32 : 16;
    static constexpr int kGroups = 32 / kRowLanes;  // that have rows of their own
    static_assert(kRowLanes % kUniteItems == 0, "a lane for each item");

    int group;
    int item;    // that the lane knows about
    int column;  // of the head, the lane's first
    bool has_columns;

    __device__ __forceinline__ UniteLane()
        : group(static_cast<int>(threadIdx.x) % 32 / kRowLanes),
          item(static_cast<int>(threadIdx.x) % kUniteItems),
          column(static_cast<int>(threadIdx.x) % kRowLanes * 4),
          has_columns(column < kHeadDim) {}
};

// A shared unit.
struct SharedUnit {
    RowTile rows;  // all
    WorkerStart start;
    int draft_index;
    int score_index;

    __device__ __forceinline__ int num_parts() const { return start.last_worker - start.first_worker + 1; }
};

// Of the first worker that starts within it.
template <typename Kind>
__device__ __forceinline__ SharedUnit shared_unit(const PillarAttentionParams& params, int group,
                                                  const PlannedWorker& planned) {
    const SlotWork work = slot_work(planned.lengths, planned.start.slot);
    const int step = rows_per_tile(Kind::kTileRows, group);
    const SlotUnits units(work, params.num_kv_heads, step);
    const UnitRows rows = unit_rows(work, units, planned.start.unit, step);
    return {row_tile(work, rows.kv_head, rows.first, rows.count, group), planned.start, planned.lengths.draft_index,
            params.score_planes == ScorePlanes::kNone ? 0 : params.score_index[work.slot]};
}

// How a block's warps share the rows of a unit. Of units with few parts each warp has some rows; of others several
// warps, one after another, share a row, and each takes some of its parts.
template <typename Kind>
struct UniteTeams {
    static constexpr int kWarps = unite_warps(Kind::kWay);

    int part_bits;  // a row has 2^part_bits items, at least as many as parts that a warp takes at once
    int per_row;    // warps
    int rows;       // of the block, at once

    UniteTeams() = default;
    __device__ __forceinline__ explicit UniteTeams(int parts) : part_bits(0), per_row(1) {
        while (1 << part_bits < min(parts, kUniteItems)) {
            ++part_bits;
        }
        while (per_row < kWarps && per_row * kUniteItems < parts) {
            per_row *= 2;
        }
        rows = kWarps / per_row * rows_of_warp();
    }

    __device__ __forceinline__ int rows_of_group() const { return kUniteItems >> part_bits; }
    __device__ __forceinline__ int rows_of_warp() const { return rows_of_group() * UniteLane<Kind::kHeadDim>::kGroups; }
    __device__ __forceinline__ int row(int item) const { return item >> part_bits; }
    __device__ __forceinline__ int part(int item) const { return item & ((1 << part_bits) - 1); }
};

// Blocks that share each unit.
__device__ __forceinline__ int unite_slices(int num_units) {
    return max(1, static_cast<int>(gridDim.x) / max(1, num_units));
}

// What a block is at: one unit, and of its rows every `stride`th `teams.rows`, from `first_row` on.
template <typename Kind>
struct UniteTask {
    SharedUnit unit;
    UniteTeams<Kind> teams;
    int first_row;
    int stride;

    UniteTask() = default;
    __device__ __forceinline__ UniteTask(const SharedUnit& shared, int slice, int slices)
        : unit(shared), teams(shared.num_parts()), first_row(slice * teams.rows), stride(slices * teams.rows) {}

    __device__ __forceinline__ bool has_rows() const { return first_row < unit.rows.packed_rows(); }
};

// The block's task with number `number`, to shared memory. The block is together.
template <typename Kind>
__device__ __forceinline__ void find_task(const PillarAttentionParams& params, int number, UniteTask<Kind>& task) {
    const WayPlan& plan = *way_plan(params.plan, Kind::kWay);
    const int num_units = plan.num_shared, slices = unite_slices(num_units);
    __syncthreads();
    if (threadIdx.x == 0) {
        const PlannedWorker& planned = planned_workers(params.plan, Kind::kWay)[plan.shared[number % num_units]];
        task = UniteTask<Kind>(shared_unit<Kind>(params, params.num_heads / params.num_kv_heads, planned),
                               number / num_units, slices);
    }
    __syncthreads();
}

}  // namespace sparsespec
