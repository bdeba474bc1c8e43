// Puts the parts of shared units together: a kernel of its own after the attention, in which nobody waits for anybody,
// and each thread's loads are on their way together.
#pragma once

#include "pillar_attention/merge.cuh"

namespace sparsespec {

constexpr int kUniteThreads = 256;
constexpr int kUniteBlocks = 4;  // on a multiprocessor: as many as fit
constexpr int kUniteWarps = kUniteThreads / 32;
// Up to so many blocks for a unit those that find no rows leave at once. Of more they stay: the next launch's copies,
// which would begin the sooner, would be in the way of what others load.
constexpr int kFewSlices = 4;
// Parts whose numbers a lane loads at once.
constexpr int kUniteAhead = 4;

// How a warp's lanes share rows: of a part each has four columns of one row.
template <int kHeadDim>
struct UniteLane {
    static constexpr int kRowLanes = kHeadDim > 64 ? 32 : 16;
    static constexpr int kRows = 32 / kRowLanes;

    int row;     // of the warp's
    int place;   // among the row's lanes
    int column;  // of the head, the lane's first
    bool has_columns;

    __device__ __forceinline__ UniteLane()
        : row(static_cast<int>(threadIdx.x) % 32 / kRowLanes),
          place(static_cast<int>(threadIdx.x) % kRowLanes),
          column(place * 4),
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

// How a block's warps share the rows of a unit: of few rows with many parts several warps, one after another, share one
// warp's rows, and each takes every per_row-th part.
template <int kHeadDim>
struct UniteTeams {
    using Lane = UniteLane<kHeadDim>;
    static constexpr int kMostPerRow = Lane::kRowLanes / kUniteAhead;  // so that a lane knows the parts of all

    int per_row;
    int rows;  // of the block, at once

    UniteTeams() = default;
    __device__ __forceinline__ UniteTeams(int parts, int block_rows) : per_row(1) {
        while (per_row < kMostPerRow && per_row * kUniteAhead < parts &&
               block_rows * per_row * 2 <= kUniteWarps * Lane::kRows) {
            per_row *= 2;
        }
        rows = kUniteWarps / per_row * Lane::kRows;
    }
};

// Blocks that share each unit.
__device__ __forceinline__ int unite_slices(int num_units) {
    return max(1, static_cast<int>(gridDim.x) / max(1, num_units));
}

// What a block is at: one unit, and of its rows every `stride`th `teams.rows`, from `first_row` on.
template <typename Kind>
struct UniteTask {
    SharedUnit unit;
    UniteTeams<Kind::kHeadDim> teams;
    int first_row;
    int stride;

    UniteTask() = default;
    __device__ __forceinline__ UniteTask(const SharedUnit& shared, int slice, int slices)
        : unit(shared),
          teams(shared.num_parts(), ceil_div(shared.rows.packed_rows(), slices)),
          first_row(slice * teams.rows),
          stride(slices * teams.rows) {}

    __device__ __forceinline__ bool has_rows() const { return first_row < unit.rows.packed_rows(); }
};

// The base and the sum of a row's part; a sum of 0 where there is no such part.
struct PartSum {
    float base = -INFINITY;
    float sum = 0;

    __device__ __forceinline__ void add(const PartSum& other) {
        const float most = fmaxf(base, other.base), finite = finite_base(most);
        sum = sum * exp2f(base - finite) + other.sum * exp2f(other.base - finite);
        base = most;
    }
};

template <typename Kind>
__device__ __forceinline__ PartSum load_part_sum(const PillarAttentionParams& params, const SharedUnit& unit, int row,
                                                 int place) {
    if (place >= unit.num_parts()) {
        return {};
    }
    // All loads before it is known whether they are of use.
    const int worker = unit.start.first_worker + place;
    const Partial part = partial<Kind>(params, unit.rows.group, worker, place == 0);
    const PartSum loaded{__ldcg(part.base + row), __ldcg(part.sum + row)};
    const bool exists = has_tiles(planned_workers(params.plan, Kind::kWay), worker);
    return exists && loaded.sum > 0 ? loaded : PartSum{};
}

// Of all parts of the lane's row, in all lanes that share it. `first`: of the part that has the lane's place.
template <typename Kind>
__device__ __forceinline__ PartSum total_of_row(const PillarAttentionParams& params, const SharedUnit& unit, int row,
                                                int place, PartSum first) {
    constexpr int kLanes = UniteLane<Kind::kHeadDim>::kRowLanes;
    for (place += kLanes; place - place % kLanes < unit.num_parts(); place += kLanes) {
        first.add(load_part_sum<Kind>(params, unit, row, place));
    }
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) {
        first.add({__shfl_xor_sync(0xffffffffu, first.base, step), __shfl_xor_sync(0xffffffffu, first.sum, step)});
    }
    return first;
}

// The lane's four numbers of some parts of a row.
struct PartOutputs {
    float4 numbers[kUniteAhead];
};

template <typename Kind>
__device__ __forceinline__ PartOutputs load_outputs(const PillarAttentionParams& params, const SharedUnit& unit,
                                                    int row, int column, int first_part, int step) {
    PartOutputs loaded;
#pragma unroll
    for (int index = 0; index < kUniteAhead; ++index) {
        const int place = first_part + index * step;
        loaded.numbers[index] = {0, 0, 0, 0};
        if (place < unit.num_parts() && column < Kind::kHeadDim) {
            const Partial part = partial<Kind>(params, unit.rows.group, unit.start.first_worker + place, place == 0);
            loaded.numbers[index] =
                __ldcg(reinterpret_cast<const float4*>(part.output + int64_t{row} * Kind::kHeadDim + column));
        }
    }
    return loaded;
}

// The lane's four numbers of a row, of every `step`th part from `member` on; and the row's base and sum.
template <typename Kind>
__device__ __forceinline__ Sum add_parts(const PillarAttentionParams& params, const SharedUnit& unit,
                                         const UniteLane<Kind::kHeadDim>& lane, int row, int member, int step) {
    constexpr int kLanes = UniteLane<Kind::kHeadDim>::kRowLanes;
    const int num_parts = unit.num_parts();
    PartOutputs output = load_outputs<Kind>(params, unit, row, lane.column, member, step);
    PartSum mine = load_part_sum<Kind>(params, unit, row, lane.place);
    const PartSum total = total_of_row<Kind>(params, unit, row, lane.place, mine);
    Sum sum{total.base, total.sum, {0, 0, 0, 0}};
#pragma unroll 1
    for (int first = 0; first < num_parts; first += step * kUniteAhead) {
        if (first > 0) {
            output = load_outputs<Kind>(params, unit, row, lane.column, first + member, step);
            if (first % kLanes == 0) {
                mine = load_part_sum<Kind>(params, unit, row, first + lane.place);
            }
        }
        const float factor = mine.sum > 0 ? exp2f(mine.base - total.base) : 0;
#pragma unroll
        for (int index = 0; index < kUniteAhead; ++index) {
            const float scale = __shfl_sync(0xffffffffu, factor, first % kLanes + member + index * step, kLanes);
            const float4& added = output.numbers[index];
            if (scale > 0) {  // what a part that is not there holds may be anything
                sum.output = {sum.output.x + scale * added.x, sum.output.y + scale * added.y,
                              sum.output.z + scale * added.z, sum.output.w + scale * added.w};
            }
        }
    }
    return sum;
}

// Adds up what the warps that share rows have come to, in their order. The block is together.
__device__ __forceinline__ void share_outputs(int warp, int per_row, Sum& sum) {
    __shared__ float4 outputs[kUniteWarps][32];
    const int lane = threadIdx.x % 32;
    __syncthreads();
    outputs[warp][lane] = sum.output;
    __syncthreads();
    for (int other = 1; other < per_row && warp % per_row == 0; ++other) {
        const float4& added = outputs[warp + other][lane];
        sum.output = {sum.output.x + added.x, sum.output.y + added.y, sum.output.z + added.z, sum.output.w + added.w};
    }
}

template <typename Kind>
__device__ __forceinline__ void unite_rows(const PillarAttentionParams& params, const UniteTask<Kind>& task) {
    const UniteLane<Kind::kHeadDim> lane;
    const int warp = static_cast<int>(threadIdx.x) / 32, per_row = task.teams.per_row;
    const RowTile& rows = task.unit.rows;
    const int packed_rows = rows.packed_rows();
    for (int first = task.first_row; first < packed_rows; first += task.stride) {
        const int row = first + warp / per_row * lane.kRows + lane.row;
        Sum sum = add_parts<Kind>(params, task.unit, lane, min(row, packed_rows - 1), warp % per_row, per_row);
        if (per_row > 1) {
            share_outputs(warp, per_row, sum);
        }
        if (row >= packed_rows || warp % per_row != 0) {
            continue;
        }
        if (lane.has_columns) {
            put_output<Kind>(params, rows, row, lane.column, sum);
        }
        if (lane.place == 0) {
            put_draft_lse(params, rows, task.unit.draft_index, row, sum.base + log2f(sum.sum));
        }
    }
}

// Whether scores were made on the way. Those of other units have no halos.
__device__ __forceinline__ bool has_halos(const PillarAttentionParams& params, const SharedUnit& unit) {
    const SlotWork& work = unit.rows.work;
    return params.score_planes == ScorePlanes::kDiagonal && work.score_rows > 0 && scores_by_drafts(params, work);
}

// Adds what each part's first tile gave to the diagonals of the part before.
template <typename Kind>
__device__ __forceinline__ void unite_halos(const PillarAttentionParams& params, const SharedUnit& unit) {
    const PlannedWorker* planned = planned_workers(params.plan, Kind::kWay);
    const ScoreTarget target = score_target(params, unit.rows, unit.score_index);
    const int place = threadIdx.x % kReach;
    for (int worker = unit.start.first_worker + 1 + threadIdx.x / kReach; worker <= unit.start.last_worker;
         worker += kUniteThreads / kReach) {
        if (has_tiles(planned, worker)) {
            const int position = planned[worker].start.tile * kTileTokens - kReach + place;
            const Partial part = partial<Kind>(params, unit.rows.group, worker, false);
            put_score(params, target, 1, position, __ldcg(part.halo + place), true);
        }
    }
}

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

// Blocks share the units; where units are few, blocks share a unit's rows too. Before it waits for the parts a block
// has read what the plan says of its first unit.
template <typename Kind>
__global__ void __launch_bounds__(kUniteThreads, kUniteBlocks)
unite_kernel(const __grid_constant__ PillarAttentionParams params) {
    __shared__ UniteTask<Kind> task;
    start_dependents();
    const int num_units = way_plan(params.plan, Kind::kWay)->num_shared;
    const int slices = unite_slices(num_units), num_tasks = num_units * slices;
    int number = static_cast<int>(blockIdx.x);
    bool works = number < num_tasks;
    if (works) {
        find_task(params, number, task);
    }
    if (number > 0 && (!works || (slices <= kFewSlices && !task.has_rows()))) {
        return;  // to leave the next launch its registers
    }
    wait_for_launch_before();  // block 0 at least does, so that who waits for this launch waits for both
    while (works) {
        unite_rows(params, task);
        if (task.first_row == 0 && has_halos(params, task.unit)) {
            unite_halos<Kind>(params, task.unit);
        }
        number += gridDim.x;
        works = number < num_tasks;
        if (works) {
            find_task(params, number, task);
        }
    }
}

}  // namespace sparsespec
