// Scores: what scored rows give to each token, summed over the heads of the group and over the rows while the tile's
// probabilities are at hand, so that no key is read twice. The normaliser has to be known by then: ScoreNormalizer says
// where it comes from.
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
    return {index * params.num_planes * plane_stride + int64_t{tile.kv_head} * params.max_positions,
            plane_stride,
            work.first_position + work.num_rows - 1,
            1.0f / (kWeightOne * tile.group * (params.score_planes == ScorePlanes::kRows ? 1 : work.score_rows)),
            tile.first_row > work.body_rows && params.score_planes != ScorePlanes::kRows};
}

__device__ __forceinline__ void put_score(const PillarAttentionParams& params, const ScoreTarget& target, int plane, int position,
                                 float sum, bool adds) {
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

// The log-sum-exps, in log2, that the warp's rows are scored by.
template <int kRowWarps, typename T, int kHeadDim>
__device__ __forceinline__ void load_lse(const Worker<T, kHeadDim>& worker, WarpRows<kHeadDim>& mine) {
    const PillarAttentionParams& params = worker.params;
    const RowTile& tile = worker.tile();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = WarpShare<kRowWarps>::first_row(worker.warp) + worker.lane / 4 + half * 8;
        const int packed = min(row, tile.packed_rows() - 1);
        if (worker.job().pass.attends) {
            // The last row was not drafted and borrows its neighbour's: it alone sees the newest token, so it must count.
            const int draft = min(min(tile.first_row + packed / tile.group, tile.work.num_rows - 2), params.max_draft_len - 1);
            const int64_t at = (int64_t{tile.work.slot} * params.max_draft_len + draft) * params.num_heads;
            mine.lse[half] = params.draft_lse[at + tile.query_head(packed)] * 1.4426950408889634f;
        } else {
            mine.lse[half] = worker.shared.lse[(tile.first_row - tile.work.body_rows) * tile.group + packed];
        }
    }
}

// weights: 2^(logit - base) of the warp's rows. A key that the draft did not read can exceed its log-sum-exp: at most 1.
template <int kRowWarps, typename T, int kHeadDim, int kColumns>
__device__ __forceinline__ void store_weights(const Worker<T, kHeadDim>& worker, const WarpRows<kHeadDim>& mine, const float (&base)[2],
                              const float (&weights)[kColumns][4]) {
    const int key = WarpShare<kRowWarps>::first_key(worker.warp) + worker.lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float factor = exp2_fast(fminf(base[half] - mine.lse[half] + kWeightExponent, 100.0f));
        uint16_t* row = worker.shared.weights[WarpShare<kRowWarps>::first_row(worker.warp) + worker.lane / 4 + half * 8];
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
            const float low = fminf(weights[column][half * 2] * factor, kWeightOne);
            const float high = fminf(weights[column][half * 2 + 1] * factor, kWeightOne);
            *reinterpret_cast<uint32_t*>(row + key + column * 8) = Numbers<__half>::pack(low, high);
        }
    }
}

// Sum over the group of one row's weights for the lane's two tokens of the tile.
__device__ __forceinline__ float2 sum_group(const WorkerShared& shared, int first_packed, int group, int lane) {
    float2 sum{0, 0};
    for (int head = 0; head < group; ++head) {
        const float2 pair = Numbers<__half>::unpack(
            *reinterpret_cast<const uint32_t*>(&shared.weights[first_packed + head][lane * 2]));
        sum.x += pair.x;
        sum.y += pair.y;
    }
    return sum;
}

// Each warp sums its share of the rows, for each token and along the diagonals.
template <typename T, int kHeadDim>
__device__ __forceinline__ void sum_rows(const Worker<T, kHeadDim>& worker, int kv_tile) {
    const RowTile& tile = worker.tile();
    const ScoreTarget& target = worker.job().target;
    const int lane = worker.lane;
    float* diagonal = worker.shared.diagonal[worker.warp];
    for (int index = lane; index < kReach + kTileTokens; index += 32) {
        diagonal[index] = 0;
    }
    __syncwarp();
    float2 mean{0, 0};
    for (int row = worker.warp; row < tile.num_rows; row += kWarps) {
        const int scored = tile.scored_row(row);
        if (scored < 0) {
            continue;
        }
        const float2 sum = sum_group(worker.shared, row * tile.group, tile.group, lane);
        if (worker.params.score_planes == ScorePlanes::kRows) {
            put_score(worker.params, target, scored, kv_tile * kTileTokens + lane * 2, sum.x, false);
            put_score(worker.params, target, scored, kv_tile * kTileTokens + lane * 2 + 1, sum.y, false);
            continue;
        }
        mean.x += sum.x;
        mean.y += sum.y;
        float* place = diagonal + kReach + lane * 2 - scored;
        place[0] += sum.x;
        __syncwarp();
        place[1] += sum.y;
        __syncwarp();
    }
    *reinterpret_cast<float2*>(&worker.shared.mean[worker.warp][lane * 2]) = mean;
}

template <int kSize>
__device__ __forceinline__ float sum_warps(const float (&parts)[kWarps][kSize], int index) {
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
        sum += parts[warp][index];
    }
    return sum;
}

// Writes the tile's means, and the diagonals that no later tile adds to.
template <typename T, int kHeadDim>
__device__ __forceinline__ void put_sums(const Worker<T, kHeadDim>& worker, int kv_tile) {
    const PillarAttentionParams& params = worker.params;
    const Job& job = worker.job();
    const ScoreTarget& target = job.target;
    WorkerShared& shared = worker.shared;
    const int index = worker.thread, first = kv_tile * kTileTokens;
    if (index < kTileTokens) {
        put_score(params, target, 0, first + index, sum_warps(shared.mean, index), target.adds);
    }
    if (params.score_planes != ScorePlanes::kDiagonal || index >= kReach + kTileTokens) {
        return;
    }
    float sum = sum_warps(shared.diagonal, index);
    if (index >= kTileTokens) {
        shared.carry[(kv_tile + 1) % 2][index - kTileTokens] = sum;
        return;
    }
    const bool starts = kv_tile == job.range.begin;
    if (index < kReach && starts && kv_tile > 0) {
        job.part.halo[index] = sum + (target.adds ? job.part.halo[index] : 0);
        return;
    }
    sum += index < kReach && !starts ? shared.carry[kv_tile % 2][index] : 0;
    put_score(params, target, 1, first - kReach + index, sum, target.adds);
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
