// Parts of units that workers share: each leaves its own in the workspace.
#pragma once

#include "pillar_attention/worker.cuh"

namespace sparsespec {

// Packed rows that a unit may have; a multiple of 4, so that every part of the workspace can be read as float4.
__host__ __device__ inline int partial_rows(Way way, int group) {
    const int block = ceil_div(kMaxBlockRows * group, 4) * 4;
    return block > tile_rows(way) ? block : tile_rows(way);
}

__host__ __device__ inline int64_t partial_floats(Way way, int group, int head_dim) {
    return int64_t{partial_rows(way, group)} * (head_dim + 2) + kReach;
}

// A worker has two parts: of the unit that it goes on with, and of the one that it starts.
template <typename Kind>
__device__ __forceinline__ Partial partial(const PillarAttentionParams& params, int group, int worker,
                                           bool starts_unit) {
    const int rows = partial_rows(Kind::kWay, group);
    float* output = static_cast<float*>(params.workspace) +
                    (worker * 2 + starts_unit) * partial_floats(Kind::kWay, group, Kind::kHeadDim);
    float* base = output + int64_t{rows} * Kind::kHeadDim;
    return {output, base, base + rows, base + 2 * rows};
}

// Whether a worker of the plan has anything to do.
__device__ __forceinline__ bool has_tiles(const PlannedWorker* planned, int worker) {
    const WorkerStart &start = planned[worker].start, &next = planned[worker + 1].start;
    return start.active != next.active || start.unit != next.unit || start.tile != next.tile;
}

}  // namespace sparsespec
