// Units whose scores need the log-sum-exps over all of their keys: whichever of the workers that share one is done last
// passes over it once more.
#pragma once

#include "pillar_attention/merge.cuh"

namespace sparsespec {

// How many of a unit's workers have a part of it. The warp is together.
__device__ __forceinline__ int count_parts(const PlannedWorker* planned, const WorkerStart& unit, int lane) {
    int count = 0;
    for (int first = unit.first_worker; first <= unit.last_worker; first += 32) {
        const bool present = first + lane <= unit.last_worker && has_tiles(planned, first + lane);
        count += __popc(__ballot_sync(0xffffffffu, present));
    }
    return count;
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

// The log-sum-exp, in log2, of a packed row of a unit over all of its parts.
template <typename Kind>
__device__ __forceinline__ float united_lse(const Worker<Kind>& worker, const PlannedWorker* planned,
                                            const WorkerStart& unit, int row) {
    Sum total;
#pragma unroll 4
    for (int other = unit.first_worker; other <= unit.last_worker; ++other) {
        const Partial part = partial<Kind>(worker.params, worker.shape.group, other, other == unit.first_worker);
        const float base = __ldcg(part.base + row), sum = __ldcg(part.sum + row);
        if (has_tiles(planned, other)) {
            total.add(base, sum, {0, 0, 0, 0});
        }
    }
    return total.base + log2f(total.sum);
}

// This worker's part of a unit is done. Whether that completes the unit; then its rows' log-sum-exps are in shared
// memory. `rows`: all of the unit's.
template <typename Kind>
__device__ __forceinline__ bool complete_unit(const Worker<Kind>& worker, const RowTile& rows,
                                              const WorkerStart& unit) {
    PlannedWorker* planned = planned_workers(worker.params.plan, Kind::kWay);
    if (!arrive(worker, &planned[unit.first_worker].start.arrived, count_parts(planned, unit, worker.lane))) {
        return false;
    }
    for (int row = worker.thread; row < rows.packed_rows(); row += Kind::kConsumers) {
        put_score_lse(worker, rows, row, united_lse(worker, planned, unit, row));
    }
    return true;
}

}  // namespace sparsespec
