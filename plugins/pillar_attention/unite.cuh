// Where workers share a unit, their parts are put together by whoever comes last. Many parts are put together in two
// steps: those of a group of workers by the group's last, then what the groups came to by the last of these.
#pragma once

#include "pillar_attention/merge.cuh"

namespace sparsespec {

// Parts that one worker puts together without groups.
constexpr int kFewParts = 8;

// Parts to put together: of workers first, first + stride, ...
struct Parts {
    int first;
    int stride;
    int count;
    uint32_t present;  // a bit for each that there is
};

// Which workers are a unit's groups.
struct Groups {
    int size;   // workers in a group
    int count;  // groups

    __device__ __forceinline__ explicit Groups(const WorkerStart& unit) {
        const int workers = unit.last_worker - unit.first_worker + 1;
        size = 1;
        while (size * size < workers && workers > kFewParts) {
            ++size;
        }
        count = ceil_div(workers, size);
    }
};
static_assert(kMaxUniteParts * kMaxUniteParts >= kMaxWorkers && kMaxUniteParts >= kFewParts);

// Whether a worker of the plan has anything to do.
__device__ __forceinline__ bool has_tiles(const PlannedWorker* planned, int worker) {
    const WorkerStart &start = planned[worker].start, &next = planned[worker + 1].start;
    return start.active != next.active || start.unit != next.unit || start.tile != next.tile;
}

// Of `count` groups of `size` workers each, which have a part of the unit. The warp is together.
__device__ __forceinline__ uint32_t find_present(const PlannedWorker* planned, const WorkerStart& unit, int first,
                                                 int size, int count, int lane) {
    bool present = false;
#pragma unroll 4
    for (int index = 0; index < size; ++index) {
        const int worker = first + lane * size + index;
        present |= lane < count && worker <= unit.last_worker && has_tiles(planned, worker);
    }
    return __ballot_sync(0xffffffffu, present);
}

// Counts one arrival of this worker; true in the one that makes them `count`.
template <typename Kind>
__device__ __forceinline__ bool arrive(const Worker<Kind>& worker, uint32_t* arrived, int count) {
    consumer_sync(worker);
    if (worker.thread == 0) {
        const uint32_t last = count - 1;
        __threadfence();
        worker.shared.last_to_arrive = atomicInc(arrived, last) == last;
        __threadfence();
    }
    consumer_sync(worker);
    return worker.shared.last_to_arrive != 0;
}

// A worker's part of the unit.
template <typename Kind>
__device__ __forceinline__ Partial part_of(const Worker<Kind>& worker, const WorkerStart& unit, int other) {
    return partial(worker, other, other == unit.first_worker);
}

// Bases and sums of some rows of all parts, to shared memory; then what scales each part to the row's base.
template <typename Kind>
__device__ __forceinline__ void weigh_parts(const Worker<Kind>& worker, const WorkerStart& unit, const Parts& parts,
                                            int first_row, int num_rows) {
    WorkerShared<Kind::kWay>& shared = worker.shared;
    for (int index = worker.thread; index < num_rows * parts.count; index += Kind::kConsumers) {
        const int row = index / parts.count, place = index % parts.count;
        const Partial part = part_of(worker, unit, parts.first + place * parts.stride);
        const float sum = (parts.present >> place & 1) != 0 ? __ldcg(part.sum + first_row + row) : 0;
        shared.part_sum[row][place] = sum;
        shared.part_factor[row][place] = sum > 0 ? __ldcg(part.base + first_row + row) : -INFINITY;
    }
    consumer_sync(worker);
    for (int row = worker.thread; row < num_rows; row += Kind::kConsumers) {
        float base = -INFINITY, sum = 0;
        for (int place = 0; place < parts.count; ++place) {
            base = fmaxf(base, shared.part_factor[row][place]);
        }
        for (int place = 0; place < parts.count; ++place) {
            float& factor = shared.part_factor[row][place];
            factor = factor == -INFINITY ? 0 : exp2f(factor - base);
            sum += factor * shared.part_sum[row][place];
        }
        shared.united_base[row] = base;
        shared.united_sum[row] = sum;
    }
    consumer_sync(worker);
}

// The sum of four numbers of a row's output over all parts. Loads do not wait for each other.
template <typename Kind>
__device__ __forceinline__ float4 add_parts(const Worker<Kind>& worker, const WorkerStart& unit, const Parts& parts,
                                            int first_row, int row, int column) {
    float4 sum{0, 0, 0, 0};
    for (int first = 0; first < parts.count; first += kFewParts) {
        float4 output[kFewParts];
        float factor[kFewParts];
#pragma unroll
        for (int index = 0; index < kFewParts; ++index) {
            const int place = first + index;
            factor[index] = place < parts.count ? worker.shared.part_factor[row][place] : 0;
            output[index] = {0, 0, 0, 0};
            if (factor[index] > 0) {
                const Partial part = part_of(worker, unit, parts.first + place * parts.stride);
                output[index] = __ldcg(
                    reinterpret_cast<const float4*>(part.output + int64_t{first_row + row} * Kind::kHeadDim + column));
            }
        }
#pragma unroll
        for (int index = 0; index < kFewParts; ++index) {
            sum = {sum.x + factor[index] * output[index].x, sum.y + factor[index] * output[index].y,
                   sum.z + factor[index] * output[index].z, sum.w + factor[index] * output[index].w};
        }
    }
    return sum;
}

// Puts parts of a unit together: to the output, or to the part of the first of them. `tile`: all rows of the unit.
template <typename Kind>
__device__ __forceinline__ void unite(const Worker<Kind>& worker, const RowTile& tile, const WorkerStart& unit,
                                      const Parts& parts, bool to_output) {
    constexpr int kQuads = Kind::kHeadDim / 4;
    const WorkerShared<Kind::kWay>& shared = worker.shared;
    const Partial target = part_of(worker, unit, parts.first);
    for (int first_row = 0; first_row < tile.packed_rows(); first_row += kUniteRows) {
        const int num_rows = min(kUniteRows, tile.packed_rows() - first_row);
        weigh_parts(worker, unit, parts, first_row, num_rows);
        for (int index = worker.thread; index < num_rows * kQuads; index += Kind::kConsumers) {
            const int row = index / kQuads, column = index % kQuads * 4;
            Sum sum;
            sum.base = shared.united_base[row];
            sum.sum = shared.united_sum[row];
            sum.output = add_parts(worker, unit, parts, first_row, row, column);
            if (to_output) {
                put_output(worker, tile, first_row + row, column, sum);
            } else {
                put_partial(target, first_row + row, Kind::kHeadDim, column, sum);
            }
        }
        consumer_sync(worker);
    }
}

// Adds what each part's first tile gave to the diagonals of the part before. `target`: of the whole unit.
template <typename Kind>
__device__ __forceinline__ void unite_halos(const Worker<Kind>& worker, const ScoreTarget& target,
                                            const WorkerStart& unit) {
    const PlannedWorker* planned = planned_workers(worker.params.plan, Kind::kWay);
    const int place = worker.thread % kReach;
    for (int other = unit.first_worker + 1 + worker.thread / kReach; other <= unit.last_worker;
         other += Kind::kConsumers / kReach) {
        if (has_tiles(planned, other)) {
            const int position = planned[other].start.tile * kTileTokens - kReach + place;
            put_score(worker.params, target, 1, position, __ldcg(part_of(worker, unit, other).halo + place), true);
        }
    }
}

// This worker's part of a unit is done. Whether that completes the unit; then it is put together, but for its halos.
template <typename Kind>
__device__ __forceinline__ bool complete_unit(const Worker<Kind>& worker, const RowTile& rows,
                                              const WorkerStart& unit) {
    PlannedWorker* planned = planned_workers(worker.params.plan, Kind::kWay);
    const Groups groups(unit);
    const int first = unit.first_worker;
    if (groups.size > 1) {
        const int leader = first + (static_cast<int>(blockIdx.x) - first) / groups.size * groups.size;
        const Parts parts{leader, 1, groups.size, find_present(planned, unit, leader, 1, groups.size, worker.lane)};
        if (!arrive(worker, &planned[leader].group_arrived, __popc(parts.present))) {
            return false;
        }
        unite(worker, rows, unit, parts, false);
    }
    const Parts parts{first, groups.size, groups.count,
                      find_present(planned, unit, first, groups.size, groups.count, worker.lane)};
    if (!arrive(worker, &planned[unit.first_worker].start.arrived, __popc(parts.present))) {
        return false;
    }
    unite(worker, rows, unit, parts, true);
    return true;
}

}  // namespace sparsespec
