// Many rows that are not scored, in a wide worker: each team has half of the row tile's rows, and each of its warps 16
// packed ones, queries and output in registers. On their way there and back they go through shared memory, as columns
// do: lanes of the matrix units have two numbers of a row here and two there.
#pragma once

#include "pillar_attention/attend.cuh"
#include "pillar_attention/column_finish.cuh"
#include "pillar_attention/column_query.cuh"

namespace sparsespec {

// Before the first tile. Warps without rows work on zeros, and what comes of it is dropped in the end.
template <typename Kind>
__device__ __forceinline__ void open_many_rows(const Worker<Kind>& worker, WarpRows<Kind::kHeadDim>& mine) {
    const RowTile& tile = worker.team_tile();
    load_queries<kTeamRows>(worker, nullptr);
    team_sync(worker);
    const LaneChunks<QueryLayout<Kind>> queries(shared_address(worker.queries()), worker.warp * 16 + worker.lane % 16,
                                                worker.lane / 16);
#pragma unroll
    for (int step = 0; step < Kind::kHeadDim / 16; ++step) {
        load_matrices(mine.q[step], queries.at(step, 0));
    }
    mine.read_by_all = tile.last_key(0) + 1;
    open_rows(mine, logit_scale(worker));
    mine.base[0] = mine.base[1] = kLowestBase;  // which the first tile moves
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int packed = worker.warp * 16 + worker.lane / 4 + half * 8;
        mine.last_key[half] = tile.last_key(max(0, min(packed, tile.packed_rows() - 1)));
    }
}

// A row's output in the model's type, to shared memory as stage_output has it; and its log-sum-exp.
template <typename Kind>
__device__ __forceinline__ void stage_row(const Worker<Kind>& worker, const WarpRows<Kind::kHeadDim>& mine, int half,
                                          int packed, float sum) {
    const float factor = sum > 0 ? 1 / sum : 0;
#pragma unroll
    for (int column = 0; column < Kind::kHeadDim / 8; ++column) {
        unsigned char* chunk = worker.weights(0) + QueryLayout<Kind>::offset(packed, column);
        reinterpret_cast<uint32_t*>(chunk)[worker.lane % 4] = Numbers<typename Kind::Model>::pack(
            mine.output[column][half * 2] * factor, mine.output[column][half * 2 + 1] * factor);
    }
    if (worker.lane % 4 == 0 && packed < worker.team_tile().packed_rows()) {
        put_lse(worker, worker.team_tile(), packed, mine.base[half] + log2f(sum));
    }
}

template <typename Kind>
__device__ __forceinline__ void finish_many_rows(const Worker<Kind>& worker, const WarpRows<Kind::kHeadDim>& mine) {
    static_assert(!Kind::kFp8, "values have no scale");
    const bool shares = worker.job().finish.shares;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int packed = worker.warp * 16 + worker.lane / 4 + half * 8;
        const float sum = sum_of_row(mine.sum[half]);
        if (!shares) {
            stage_row(worker, mine, half, packed, sum);
        } else if (packed < worker.team_tile().packed_rows()) {
            put_row_part(worker, mine, half, first_part_row(worker) + packed, sum);
        }
    }
    team_sync(worker);
    if (!shares) {
        copy_output(worker);
    }
}

}  // namespace sparsespec
