// Puts the parts of shared units together: a kernel of its own after the attention, in which nobody waits for anybody.
#pragma once

#include "pillar_attention/unite_rows.cuh"

namespace sparsespec {

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
         worker += static_cast<int>(blockDim.x) / kReach) {
        if (has_tiles(planned, worker)) {
            const int position = planned[worker].start.tile * kTileTokens - kReach + place;
            const Partial part = partial<Kind>(params, unit.rows.group, worker, false);
            put_score(params, target, 1, position, __ldcg(part.halo + place), true);
        }
    }
}

// Blocks share the units; where units are few, blocks share a unit's rows too. Before it waits for the parts a block
// has read what the plan says of its first unit.
template <typename Kind>
__global__ void __launch_bounds__(unite_warps(Kind::kWay) * 32, unite_blocks(Kind::kWay))
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
    UniteItem item{};
    if (works) {
        item = first_item(params, task, UniteLane<Kind::kHeadDim>());
    }
    wait_for_launch_before();  // block 0 at least does, so that who waits for this launch waits for both
    while (works) {
        unite_rows(params, task, item);
        if (task.first_row == 0 && has_halos(params, task.unit)) {
            unite_halos<Kind>(params, task.unit);
        }
        number += gridDim.x;
        works = number < num_tasks;
        if (works) {
            find_task(params, number, task);
            item = first_item(params, task, UniteLane<Kind::kHeadDim>());
        }
    }
}

}  // namespace sparsespec
