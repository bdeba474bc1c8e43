// Puts the parts of shared units together: a kernel of its own after the attention, in which nobody waits for anybody,
// and each thread's loads are on their way together.
#pragma once

#include "pillar_attention/merge.cuh"

namespace sparsespec {

constexpr int kUniteThreads = 256;
// Parts whose numbers a thread loads at once.
constexpr int kUniteAhead = 8;

// The block's threads in teams, each of which adds up one row, four columns a thread; of many parts several teams share
// a row.
template <int kHeadDim>
struct UniteTeams {
    static constexpr int kQuads = kHeadDim / 4, kTeams = kUniteThreads / kQuads;
    int per_row;  // teams
    int rows;     // at once

    __device__ __forceinline__ explicit UniteTeams(int parts)
        : per_row(parts <= kUniteAhead       ? 1
                  : parts <= 2 * kUniteAhead ? 2
                                             : 4),
          rows(kTeams / per_row) {}
};

template <int kHeadDim>
struct UniteShared {
    static constexpr int kTeams = UniteTeams<kHeadDim>::kTeams;
    float factor[kMaxWorkers * kTeams / 4];  // of each row's parts
    float base[kTeams];
    float sum[kTeams];
    float4 output[kTeams][kHeadDim / 4];  // of each team
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

// What scales each part of some rows to the row's base, the row's base and its sum, to shared memory. A warp for each
// row, a lane for each part.
template <typename Kind>
__device__ __forceinline__ void weigh_parts(const PillarAttentionParams& params, const SharedUnit& unit, int first_row,
                                            int num_rows, UniteShared<Kind::kHeadDim>& shared) {
    const PlannedWorker* planned = planned_workers(params.plan, Kind::kWay);
    const int lane = threadIdx.x % 32, num_parts = unit.num_parts();
    for (int row = threadIdx.x / 32; row < num_rows; row += kUniteThreads / 32) {
        float* factors = shared.factor + row * num_parts;
        float most = -INFINITY, total = 0;
        for (int place = lane; place < num_parts; place += 32) {
            const int worker = unit.start.first_worker + place;
            const Partial part = partial<Kind>(params, unit.rows.group, worker, place == 0);
            const float base = __ldcg(part.base + first_row + row), sum = __ldcg(part.sum + first_row + row);
            const bool present = has_tiles(planned, worker) && sum > 0;
            // bases may differ between lanes: each lane's sum goes by its own until they meet
            const float next = present ? fmaxf(most, base) : most;
            total = total * exp2f(most == -INFINITY ? 0 : most - next) + (present ? sum * exp2f(base - next) : 0);
            most = next;
            factors[place] = present ? base : -INFINITY;
        }
        float row_base = most;
        for (int step = 1; step < 32; step *= 2) {
            row_base = fmaxf(row_base, __shfl_xor_sync(0xffffffffu, row_base, step));
        }
        total = most == -INFINITY ? 0 : total * exp2f(most - row_base);
        for (int step = 1; step < 32; step *= 2) {
            total += __shfl_xor_sync(0xffffffffu, total, step);
        }
        for (int place = lane; place < num_parts; place += 32) {
            factors[place] = factors[place] == -INFINITY ? 0 : exp2f(factors[place] - row_base);
        }
        shared.base[row] = row_base;
        shared.sum[row] = total;
    }
}

// A team's sum of four numbers of a row's output, of every `step`th part from `place` on.
template <typename Kind>
__device__ __forceinline__ float4 add_parts(const PillarAttentionParams& params, const SharedUnit& unit, int packed,
                                            int column, int place, int step, const float* factors) {
    float4 sum{0, 0, 0, 0};
    const int num_parts = unit.num_parts();
#pragma unroll 1
    for (; place < num_parts; place += kUniteAhead * step) {
        float4 output[kUniteAhead];
        float factor[kUniteAhead];
#pragma unroll
        for (int index = 0; index < kUniteAhead; ++index) {
            const int each = place + index * step;
            factor[index] = each < num_parts ? factors[each] : 0;
            output[index] = {0, 0, 0, 0};
            if (factor[index] > 0) {
                const Partial part = partial<Kind>(params, unit.rows.group, unit.start.first_worker + each, each == 0);
                output[index] =
                    __ldcg(reinterpret_cast<const float4*>(part.output + int64_t{packed} * Kind::kHeadDim + column));
            }
        }
#pragma unroll
        for (int index = 0; index < kUniteAhead; ++index) {
            sum = {sum.x + factor[index] * output[index].x, sum.y + factor[index] * output[index].y,
                   sum.z + factor[index] * output[index].z, sum.w + factor[index] * output[index].w};
        }
    }
    return sum;
}

// Some rows' output, of which weigh_parts has left the factors.
template <typename Kind>
__device__ __forceinline__ void unite_rows(const PillarAttentionParams& params, const SharedUnit& unit,
                                           const UniteTeams<Kind::kHeadDim>& teams, int first_row, int num_rows,
                                           UniteShared<Kind::kHeadDim>& shared) {
    constexpr int kQuads = UniteTeams<Kind::kHeadDim>::kQuads;
    const int team = threadIdx.x / kQuads, quad = threadIdx.x % kQuads, row = team / teams.per_row;
    const bool works = row < num_rows;
    if (works) {
        shared.output[team][quad] = add_parts<Kind>(params, unit, first_row + row, quad * 4, team % teams.per_row,
                                                    teams.per_row, shared.factor + row * unit.num_parts());
    }
    __syncthreads();
    if (works && team % teams.per_row == 0) {
        Sum sum{shared.base[row], shared.sum[row], shared.output[team][quad]};
        for (int other = 1; other < teams.per_row; ++other) {
            const float4& added = shared.output[team + other][quad];
            sum.output = {sum.output.x + added.x, sum.output.y + added.y, sum.output.z + added.z,
                          sum.output.w + added.w};
        }
        put_output<Kind>(params, unit.rows, first_row + row, quad * 4, sum);
        if (quad == 0) {
            put_draft_lse(params, unit.rows, unit.draft_index, first_row + row, sum.base + log2f(sum.sum));
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

// Blocks share the units; where units are few, blocks share a unit's rows too.
template <typename Kind>
__global__ void __launch_bounds__(kUniteThreads)
unite_kernel(const __grid_constant__ PillarAttentionParams params) {
    __shared__ UniteShared<Kind::kHeadDim> shared;
    start_dependents();
    const WayPlan& plan = *way_plan(params.plan, Kind::kWay);
    const int group = params.num_heads / params.num_kv_heads, num_units = plan.num_shared;
    const int slices = max(1, static_cast<int>(gridDim.x) / max(1, num_units));
    wait_for_launch_before();
    for (int task = blockIdx.x; task < num_units * slices; task += gridDim.x) {
        const SharedUnit unit = shared_unit<Kind>(params, group, plan.workers[plan.shared[task % num_units]]);
        const UniteTeams<Kind::kHeadDim> teams(unit.num_parts());
        const int slice = task / num_units;
        for (int first = slice * teams.rows; first < unit.rows.packed_rows(); first += slices * teams.rows) {
            const int num_rows = min(teams.rows, unit.rows.packed_rows() - first);
            weigh_parts<Kind>(params, unit, first, num_rows, shared);
            __syncthreads();
            unite_rows<Kind>(params, unit, teams, first, num_rows, shared);
            __syncthreads();
        }
        if (slice == 0 && has_halos(params, unit)) {
            unite_halos<Kind>(params, unit);
        }
    }
}

}  // namespace sparsespec
