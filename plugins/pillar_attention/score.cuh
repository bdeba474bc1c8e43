// Scores: what scored rows give to each token, summed over the heads of the group and over the rows while the tile's
// probabilities are at hand, so that no key is read twice. The normaliser has to be known by then: ScoreNormalizer says
// where it comes from.
//
// Means are summed in registers. For diagonals the rows of probabilities lie in shared memory shifted by their place
// among the scored rows, so that a diagonal is a column, and the matrix units sum the columns. Shifts are even, for
// aligned stores: rows at odd places are shifted one less, summed apart, and their sums taken from one column further
// on.
#pragma once

#include "pillar_attention/ptx.cuh"
#include "pillar_attention/warp_rows.cuh"

namespace sparsespec {

// Probabilities are kept in fp16 times 2^14: 11 bits down to 4e-9, where fp16 alone would end at 6e-5.
constexpr float kWeightExponent = 14;
constexpr float kWeightOne = 16384;

__device__ __forceinline__ ScoreTarget score_target(const PillarAttentionParams& params, const RowTile& tile) {
    const SlotWork& work = tile.work;
    const int64_t index = params.score_index[work.slot];
    const int64_t plane_stride = int64_t{params.num_kv_heads} * params.max_positions;
    return {index * params.num_planes * plane_stride + int64_t{tile.kv_head} * params.max_positions, plane_stride,
            work.first_position + work.num_rows - 1,
            1.0f / (kWeightOne * tile.group * (params.score_planes == ScorePlanes::kRows ? 1 : work.score_rows)),
            tile.first_row > work.body_rows && params.score_planes != ScorePlanes::kRows};
}

__device__ __forceinline__ void put_score(const PillarAttentionParams& params, const ScoreTarget& target, int plane,
                                          int position, float sum, bool adds) {
    if (position < 0 || position > target.last_position) {
        return;
    }
    const int64_t at = target.offset + plane * target.plane_stride + position;
    const float value = sum * target.scale;
    if (params.score_dtype == Dtype::kFloat16) {
        __half* score = static_cast<__half*>(params.scores) + at;
        *score = __float2half_rn(value + (adds ? __half2float(*score) : 0.0f));
    } else {
        float* score = static_cast<float*>(params.scores) + at;
        *score = value + (adds ? *score : 0.0f);
    }
}

// The log-sum-exp, in log2, that a packed row of the tile is scored by.
template <typename T, int kHeadDim>
__device__ __forceinline__ float score_lse(const Worker<T, kHeadDim>& worker, int packed) {
    const PillarAttentionParams& params = worker.params;
    const RowTile& tile = worker.tile();
    if (!worker.job().pass.attends) {
        return worker.shared.lse[(tile.first_row - tile.work.body_rows) * tile.group + packed];
    }
    // The last row was not drafted and borrows its neighbour's: it alone sees the newest token, so it must count.
    const int draft = min(min(tile.first_row + packed / tile.group, tile.work.num_rows - 2), params.max_draft_len - 1);
    const int64_t at = (int64_t{tile.work.slot} * params.max_draft_len + draft) * params.num_heads;
    return params.draft_lse[at + tile.query_head(packed)] * kLog2E;
}

// Before the first tile of a job that scores. Each row of `weights` is written in the same columns for every tile: the
// others stay 0.
template <int kRowWarps, typename T, int kHeadDim>
__device__ __forceinline__ void open_scores(const Worker<T, kHeadDim>& worker, WarpRows<kHeadDim>& mine) {
    const RowTile& tile = worker.tile();
    const bool shifts = worker.params.score_planes == ScorePlanes::kDiagonal;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int packed = WarpShare<kRowWarps>::first_row(worker.warp) + worker.lane / 4 + half * 8;
        const int scored = packed < tile.packed_rows() ? tile.scored_row(packed / tile.group) : -1;
        mine.lse[half] = scored < 0 ? INFINITY : score_lse(worker, packed);
        mine.shift[half] = scored > 0 && shifts ? scored & ~1 : 0;
    }
    uint32_t* weights = reinterpret_cast<uint32_t*>(worker.shared.weights);
    for (int index = worker.thread; index < kTileRows * kWeightStride / 2; index += kConsumers) {
        weights[index] = 0;
    }
    const int packed = worker.thread / 2, odd = worker.thread % 2;
    const bool selected = packed < tile.packed_rows() && (tile.scored_row(packed / tile.group) & 1) == odd;
    worker.shared.selector[odd][packed] = selected ? 0x3c00 : 0;  // 1 in fp16
    consumer_sync();
}

// The sum over the warp's 16 rows of two neighbouring tokens, in lanes 0 to 3.
__device__ __forceinline__ float2 sum_lanes(float2 sum) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
        sum.x += __shfl_xor_sync(0xffffffffu, sum.x, step);
        sum.y += __shfl_xor_sync(0xffffffffu, sum.y, step);
    }
    return sum;
}

// weights: 2^(logit - base) of the warp's rows. A key that the draft did not read can exceed its log-sum-exp: at
// most 1.
template <int kRowWarps, typename T, int kHeadDim, int kColumns>
__device__ __forceinline__ void store_weights(const Worker<T, kHeadDim>& worker, const WarpRows<kHeadDim>& mine,
                                              const float (&factor)[2], const float (&weights)[kColumns][4]) {
    const int row = WarpShare<kRowWarps>::first_row(worker.warp), key = WarpShare<kRowWarps>::first_key(worker.warp);
    const int lane_key = key + worker.lane % 4 * 2;
    const bool means = worker.params.score_planes != ScorePlanes::kRows;
    uint16_t* rows[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        rows[half] = worker.shared.weights[row + worker.lane / 4 + half * 8] + kReach + lane_key - mine.shift[half];
    }
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
        float2 sum{0, 0};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float low = fminf(weights[column][half * 2] * factor[half], kWeightOne);
            const float high = fminf(weights[column][half * 2 + 1] * factor[half], kWeightOne);
            *reinterpret_cast<uint32_t*>(rows[half] + column * 8) = Numbers<__half>::pack(low, high);
            sum.x += low;
            sum.y += high;
        }
        if (means) {
            sum = sum_lanes(sum);
            if (worker.lane < 4) {
                *reinterpret_cast<float2*>(&worker.shared.means[row / 16][lane_key + column * 8]) = sum;
            }
        }
    }
}

// Sums sixteen columns of `weights` over the rows at even and at odd places.
__device__ __forceinline__ void sum_columns(WorkerShared& shared, int num_rows, int first, int lane) {
    float sums[2][4] = {};
    for (int row = 0; row < num_rows; row += 16) {
        uint32_t b[4], a[4] = {};
        load_matrices_transposed(b, shared_address(&shared.weights[row + lane % 16][first + lane / 16 * 8]));
        if (lane < 8) {
            const uint16_t* ones = shared.selector[lane / 4] + row + lane % 4 * 2;
            a[0] = *reinterpret_cast<const uint32_t*>(ones);
            a[2] = *reinterpret_cast<const uint32_t*>(ones + 8);
        }
        Numbers<__half>::multiply_add(sums[0], a, b[0], b[1]);
        Numbers<__half>::multiply_add(sums[1], a, b[2], b[3]);
    }
    if (lane < 8) {
        float* columns = shared.columns[lane / 4] + first + lane % 4 * 2;
        *reinterpret_cast<float2*>(columns) = {sums[0][0], sums[0][1]};
        *reinterpret_cast<float2*>(columns + 8) = {sums[1][0], sums[1][1]};
    }
}

// A plane for each scored row: sums over the group alone.
template <typename T, int kHeadDim>
__device__ __forceinline__ void put_rows(const Worker<T, kHeadDim>& worker, int kv_tile) {
    const RowTile& tile = worker.tile();
    for (int row = worker.warp; row < tile.num_rows; row += kWarps) {
        float2 sum{0, 0};
        for (int head = 0; head < tile.group; ++head) {
            const float2 pair = Numbers<__half>::unpack(*reinterpret_cast<const uint32_t*>(
                &worker.shared.weights[row * tile.group + head][kReach + worker.lane * 2]));
            sum = {sum.x + pair.x, sum.y + pair.y};
        }
        const int plane = tile.scored_row(row);  // the device's score_rows may promise more planes than there are
        if (plane >= 0 && plane < worker.params.num_planes) {
            const int position = kv_tile * kTileTokens + worker.lane * 2;
            put_score(worker.params, worker.job().target, plane, position, sum.x, false);
            put_score(worker.params, worker.job().target, plane, position + 1, sum.y, false);
        }
    }
}

template <typename T, int kHeadDim>
__device__ __forceinline__ void put_mean(const Worker<T, kHeadDim>& worker, int kv_tile) {
    float sum = 0;
    for (int part = 0; part * 16 < worker.tile().packed_rows(); ++part) {
        sum += worker.shared.means[part][worker.thread];
    }
    const ScoreTarget& target = worker.job().target;
    put_score(worker.params, target, 0, kv_tile * kTileTokens + worker.thread, sum, target.adds);
}

// Writes the diagonals that no later tile adds to, and keeps the others.
template <typename T, int kHeadDim>
__device__ __forceinline__ void put_diagonal(const Worker<T, kHeadDim>& worker, int kv_tile) {
    const int index = worker.thread;
    const Job& job = worker.job();
    WorkerShared& shared = worker.shared;
    float sum = shared.columns[0][index] + (index + 1 < kWeightColumns ? shared.columns[1][index + 1] : 0);
    if (index >= kTileTokens) {
        shared.carry[(kv_tile + 1) % 2][index - kTileTokens] = sum;
        return;
    }
    const bool starts = kv_tile == job.range.begin;
    if (index < kReach && starts && kv_tile > 0) {
        job.part.halo[index] = sum + (job.target.adds ? job.part.halo[index] : 0);
        return;
    }
    sum += index < kReach && !starts ? shared.carry[kv_tile % 2][index] : 0;
    put_score(worker.params, job.target, 1, kv_tile * kTileTokens - kReach + index, sum, job.target.adds);
}

// The scores of a tile whose weights are stored.
template <typename T, int kHeadDim>
__device__ __forceinline__ void score_tile(const Worker<T, kHeadDim>& worker, int kv_tile) {
    consumer_sync();
    const ScorePlanes planes = worker.params.score_planes;
    if (planes == ScorePlanes::kRows) {
        put_rows(worker, kv_tile);
    } else if (planes == ScorePlanes::kDiagonal) {
        // From the last warp on, which has no rows of its own where they are few.
        for (int part = kWarps - 1 - worker.warp; part < kWeightColumns / 16; part += kWarps) {
            sum_columns(worker.shared, worker.tile().packed_rows(), part * 16, worker.lane);
        }
    }
    if (planes != ScorePlanes::kRows && worker.thread < kTileTokens) {
        put_mean(worker, kv_tile);
    }
    consumer_sync();
    if (planes == ScorePlanes::kDiagonal && worker.thread < kWeightColumns) {
        put_diagonal(worker, kv_tile);
    }
}

// After the range's last tile: the diagonals that are still open. Another worker's halo may add to them later.
template <typename T, int kHeadDim>
__device__ __forceinline__ void put_carry(const Worker<T, kHeadDim>& worker) {
    const int end = worker.job().range.end;
    if (worker.params.score_planes == ScorePlanes::kDiagonal && worker.thread < kReach) {
        const ScoreTarget& target = worker.job().target;
        const float sum = worker.shared.carry[end % 2][worker.thread];
        put_score(worker.params, target, 1, end * kTileTokens - kReach + worker.thread, sum, target.adds);
    }
}

}  // namespace sparsespec
