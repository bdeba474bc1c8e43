// What a team's rows have come to: to the workspace if other workers share the unit, else to the output.
#pragma once

#include "pillar_attention/columns.cuh"
#include "pillar_attention/merge.cuh"

namespace sparsespec {

// A tile's bases and sums, where its queries were.
struct ColumnTotals {
    float* base;  // [kColumns]
    float* sums;  // [4, kColumns], of each warp's keys

    __device__ __forceinline__ float sum(int columns, int packed) const {
        return sums[packed] + sums[columns + packed] + sums[2 * columns + packed] + sums[3 * columns + packed];
    }
};

// Shares the warps' sums. The consumers meet.
template <typename Kind, int kColumns>
__device__ __forceinline__ ColumnTotals share_totals(const Worker<Kind>& worker,
                                                     const ColumnRows<Kind, kColumns>& rows) {
    float* memory = reinterpret_cast<float*>(worker.queries());
    const ColumnTotals totals{memory, memory + kColumns};
    const int lane_packed = worker.lane % 4 * 2;
#pragma unroll
    for (int eight = 0; eight < kColumns / 8; ++eight) {
        float sum[2];
#pragma unroll
        for (int index = 0; index < 2; ++index) {
            sum[index] = rows.sum[eight][index];
#pragma unroll
            for (int step = 4; step < 32; step *= 2) {
                sum[index] += __shfl_xor_sync(0xffffffffu, sum[index], step);
            }
        }
        if (worker.lane < 4) {
            const int packed = eight * 8 + lane_packed;
            *reinterpret_cast<float2*>(totals.sums + worker.warp * kColumns + packed) = {sum[0], sum[1]};
            if (worker.warp == 0) {
                *reinterpret_cast<float2*>(totals.base + packed) = {rows.base[eight][0], rows.base[eight][1]};
            }
        }
    }
    team_sync(worker);
    return totals;
}

// Where the team's rows begin among those of a part.
template <typename Kind>
__device__ __forceinline__ int first_part_row(const Worker<Kind>& worker) {
    const RowTile& all = worker.tile();
    return (max(0, all.first_row - all.work.body_rows) + worker.team_tile().first_row - all.first_row) * all.group;
}

// The worker's part of a unit.
template <typename Kind, int kColumns>
__device__ __forceinline__ void put_part(const Worker<Kind>& worker, const ColumnRows<Kind, kColumns>& rows,
                                         const ColumnTotals& totals) {
    const RowTile& tile = worker.team_tile();
    const Partial& part = worker.job().part;
    const int first_row = first_part_row(worker), packed_rows = tile.packed_rows();
    if (worker.thread < packed_rows) {
        part.base[first_row + worker.thread] = totals.base[worker.thread];
        part.sum[first_row + worker.thread] = totals.sum(kColumns, worker.thread);
    }
#pragma unroll
    for (int eight = 0; eight < kColumns / 8; ++eight) {
#pragma unroll
        for (int index = 0; index < 2; ++index) {
            const int packed = eight * 8 + worker.lane % 4 * 2 + index;
            float* output = part.output + int64_t{first_row + packed} * Kind::kHeadDim;
#pragma unroll
            for (int block = 0; block < Kind::kHeadBlocks; ++block) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int number = output_number<Kind>(worker.warp, worker.lane, block, half);
                    if (packed < packed_rows && number < Kind::kHeadDim) {
                        output[number] = rows.output[block][eight][half * 2 + index];
                    }
                }
            }
        }
    }
}

// The output of the lane's columns in the model's type, to shared memory where the weights were: a row, as QueryLayout
// has it, for each packed row.
template <typename Kind, int kColumns>
__device__ __forceinline__ void stage_output(const Worker<Kind>& worker, const ColumnRows<Kind, kColumns>& rows,
                                             const ColumnTotals& totals) {
    using Model = typename Kind::Model;
    const float scale = value_scale<Kind>(worker.params, worker.team_tile().kv_head);
#pragma unroll
    for (int eight = 0; eight < kColumns / 8; ++eight) {
#pragma unroll
        for (int index = 0; index < 2; ++index) {
            const int packed = eight * 8 + worker.lane % 4 * 2 + index;
            const float sum = totals.sum(kColumns, packed), factor = sum > 0 ? scale / sum : 0;
#pragma unroll
            for (int block = 0; block < Kind::kHeadBlocks; ++block) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int number = output_number<Kind>(worker.warp, worker.lane, block, half);
                    if (number < Kind::kHeadDim) {
                        unsigned char* chunk = worker.weights(0) + QueryLayout<Kind>::offset(packed, number / 8);
                        reinterpret_cast<Model*>(chunk)[number % 8] =
                            Numbers<Model>::from_float(rows.output[block][eight][half * 2 + index] * factor);
                    }
                }
            }
        }
    }
}

// From there to where it belongs.
template <typename Kind>
__device__ __forceinline__ void copy_output(const Worker<Kind>& worker) {
    constexpr int kChunks = Kind::kHeadDim / 8;
    const RowTile& tile = worker.team_tile();
    for (int index = worker.thread; index < tile.packed_rows() * kChunks; index += kTeamThreads) {
        const int packed = index / kChunks, chunk = index % kChunks;
        const uint4 numbers =
            *reinterpret_cast<const uint4*>(worker.weights(0) + QueryLayout<Kind>::offset(packed, chunk));
        *reinterpret_cast<uint4*>(output_row<Kind>(worker.params, tile, packed) + chunk * 8) = numbers;
    }
}

template <typename Kind, int kColumns>
__device__ __forceinline__ void finish_columns(const Worker<Kind>& worker, const ColumnRows<Kind, kColumns>& rows) {
    const ColumnTotals totals = share_totals(worker, rows);
    if (worker.job().finish.shares) {
        put_part(worker, rows, totals);
        team_sync(worker);  // the next job's queries go to where the sums are
        return;
    }
    const int packed = worker.thread;
    if (packed < worker.team_tile().packed_rows()) {
        put_lse(worker, worker.team_tile(), packed, totals.base[packed] + log2f(totals.sum(kColumns, packed)));
    }
    stage_output(worker, rows, totals);
    team_sync(worker);
    copy_output(worker);
}

}  // namespace sparsespec
