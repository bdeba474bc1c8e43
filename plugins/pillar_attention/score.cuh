// Scores: what scored rows give to each token, summed over the heads of the group and over the rows while the tile's
// weights are at hand, so that no key is read twice. The normaliser has to be known by then: ScoreNormalizer says where
// it comes from.
//
// The matrix units sum: a warp's 16 packed rows of weights, transposed, times a matrix that has in row r, for each
// packed row of the r-th scored row, the factor that makes probabilities of its weights. These sums, one for each
// scored row and token, go to shared memory, where the scorer makes means and diagonals of them.
#pragma once

#include "pillar_attention/ptx.cuh"
#include "pillar_attention/warp_rows.cuh"

namespace sparsespec {

// Factors are in fp16 times 2^8, so that they too are precise where they are small.
constexpr float kFactorExponent = 8;
constexpr float kSumOne = 16384.0f * 256.0f;  // what a probability of 1 comes to in `sums`
constexpr uint32_t kNotScored = 0xff;

// A warp's packed rows as they are scored.
struct ScoredRows {
    float lse[2];         // of the lane's rows, in log2, to normalise by; infinite where not scored
    uint32_t rows;        // a byte for packed rows 2 (lane % 4), the next, and those 8 on: which row of the warp's sums
    uint32_t first;       // the warp's first row of `sums`
    uint32_t factors[4];  // the matrix, as mma.sync wants it
    uint32_t flags;       // in one register: truth values of their own were spilled

    // Of `flags`: whether the lane puts its first row of sums, or its second; whether a row's probability may exceed 1.
    static constexpr uint32_t kPuts = 1, kPutsSecond = 2, kCuts = 4;
    __device__ __forceinline__ bool has(uint32_t flag) const { return (flags & flag) != 0; }
};

// `index`: the slot's place in `scores`.
__device__ __forceinline__ ScoreTarget score_target(const PillarAttentionParams& params, const RowTile& tile,
                                                    int64_t index) {
    const SlotWork& work = tile.work;
    const int64_t plane_stride = int64_t{params.num_kv_heads} * params.max_positions;
    return {index * params.num_planes * plane_stride + int64_t{tile.kv_head} * params.max_positions, plane_stride,
            work.first_position + work.num_rows - 1,
            1.0f / (kSumOne * tile.group * (params.score_planes == ScorePlanes::kRows ? 1 : work.score_rows)),
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
template <typename Kind>
__device__ __forceinline__ float score_lse(const Worker<Kind>& worker, const RowTile& tile, int packed) {
    const PillarAttentionParams& params = worker.params;
    if (!worker.job().pass.attends) {
        return worker.shared.lse[(tile.first_row - tile.work.body_rows) * tile.group + packed];
    }
    // The last row was not drafted and borrows its neighbour's: it alone sees the newest token, so it must count.
    const int draft = min(min(tile.first_row + tile.row(packed), tile.work.num_rows - 2), params.max_draft_len - 1);
    const int64_t at = (int64_t{tile.work.slot} * params.max_draft_len + draft) * params.num_heads;
    return params.draft_lse[at + tile.query_head(packed)] * kLog2E;
}

// Rows of the tile that some packed rows belong to.
struct RowRange {
    int first;
    int end;
};

// Those that the packed rows [first_packed, first_packed + count) belong to and that are scored.
__device__ __forceinline__ RowRange scored_rows(const RowTile& tile, int first_packed, int count) {
    const int last_packed = min(first_packed + count, tile.packed_rows()) - 1;
    const int first = max(tile.row(first_packed), -tile.scored_row(0));
    return {first, last_packed < first_packed ? first : max(first, tile.row(last_packed) + 1)};
}

// Scored rows of the tile, no more than there is room for, whatever the device's lengths promise.
__device__ __forceinline__ int scored_row_count(const RowTile& tile) {
    const RowRange rows = scored_rows(tile, 0, tile.packed_rows());
    return min(rows.end - rows.first, kMaxBlockRows);
}

// Which row of the warp's sums a packed row counts to; `end`: of the warp's packed rows.
__device__ __forceinline__ uint32_t sums_row(const RowTile& tile, const RowRange& rows, int packed, int end) {
    const int row = tile.row(packed);
    return packed < min(end, tile.packed_rows()) && row >= rows.first ? row - rows.first : kNotScored;
}

// The matrix of factors for new bases. One that makes more than 1 of a weight is left to cut_weights.
__device__ __forceinline__ void set_factors(ScoredRows& scored, const float (&base)[2], int lane) {
    float exponent[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        exponent[half] = finite_base(base[half]) + kWeightExponent - scored.lse[half];
    }
    const bool cuts = __any_sync(0xffffffffu, fmaxf(exponent[0], exponent[1]) > 0);
    scored.flags = (scored.flags & ~ScoredRows::kCuts) | (cuts ? ScoredRows::kCuts : 0);
    uint32_t pairs[2];  // packed rows 2 (lane % 4) and the next; those 8 on
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float factor =
            cuts ? 1 << static_cast<int>(kFactorExponent) : exp2_fast(exponent[half] + kFactorExponent);
        const float low = __shfl_sync(0xffffffffu, factor, lane % 4 * 8);
        const float high = __shfl_sync(0xffffffffu, factor, lane % 4 * 8 + 4);
        pairs[half] = Numbers<__half>::pack(low, high);
    }
#pragma unroll
    for (int index = 0; index < 4; ++index) {
        const uint32_t row = lane / 4 + index % 2 * 8, rows = scored.rows >> index / 2 * 16;
        const uint32_t low = (rows & 0xff) == row ? 0xffffu : 0, high = (rows >> 8 & 0xff) == row ? 0xffff0000u : 0;
        scored.factors[index] = pairs[index / 2] & (low | high);
    }
}

// Before the first tile of a job that scores.
template <int kRowWarps, typename Kind>
__device__ __forceinline__ void open_scores(const Worker<Kind>& worker, ScoredRows& scored) {
    const RowTile& tile = worker.tile();
    constexpr int step = 16;
    const int first_packed = first_row<kRowWarps>(worker), end = first_packed + step;
    const RowRange rows = scored_rows(tile, first_packed, step);
    scored.first = 0;
    for (int before = 0; before < first_packed; before += step) {
        const RowRange others = scored_rows(tile, before, step);
        scored.first += others.end - others.first;
    }
    // no more than there is room for, whatever the device's lengths promise
    scored.first = min(scored.first, kMaxScoreSums);
    const int row = worker.lane / 4, count = min(rows.end - rows.first, kMaxScoreSums - scored.first);
    scored.flags = (row < count ? ScoredRows::kPuts : 0) | (row + 8 < count ? ScoredRows::kPutsSecond : 0);
    scored.rows = 0;
#pragma unroll
    for (int index = 0; index < 4; ++index) {
        const int packed = first_packed + worker.lane % 4 * 2 + index % 2 + index / 2 * 8;
        scored.rows |= sums_row(tile, rows, packed, end) << index * 8;
        scored.factors[index] = 0;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int packed = first_packed + worker.lane / 4 + half * 8;
        scored.lse[half] = sums_row(tile, rows, packed, end) == kNotScored ? INFINITY : score_lse(worker, tile, packed);
    }
    if (!worker.job().pass.attends) {
        const float known[2] = {scored.lse[0] - kWeightExponent, scored.lse[1] - kWeightExponent};
        set_factors(scored, known, worker.lane);
    }
}

// A tile's weights in fp16, for the sums: of a lane's two rows, two neighbouring tokens each.
template <int kColumns>
struct ScoreWeights {
    uint32_t pairs[kColumns][2];
};

// Of weights 2^(logit - base).
template <int kColumns>
__device__ __forceinline__ void take_weights(const float (&weights)[kColumns][4], ScoreWeights<kColumns>& taken) {
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
        taken.pairs[column][0] = Numbers<__half>::pack(weights[column][0], weights[column][1]);
        taken.pairs[column][1] = Numbers<__half>::pack(weights[column][2], weights[column][3]);
    }
}

// The same where a row's probability may exceed 1, as that of a key which the draft did not read can: probabilities are
// made here, and cut off at 1.
template <int kColumns>
__device__ __forceinline__ void cut_weights(const ScoredRows& scored, const float (&base)[2],
                                            const float (&weights)[kColumns][4], ScoreWeights<kColumns>& taken) {
    constexpr float kMost = 1 << static_cast<int>(kWeightExponent);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float factor = exp2_fast(fminf(finite_base(base[half]) + kWeightExponent - scored.lse[half], 100.0f));
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
            const float low = weights[column][half * 2], high = weights[column][half * 2 + 1];
            uint32_t pair = Numbers<__half>::pack(fminf(low * factor, kMost), fminf(high * factor, kMost));
            asm volatile("" : "+r"(pair));  // packed here: else twice as many registers would leave this branch
            taken.pairs[column][half] = pair;
        }
    }
}

// The tile's sums over the packed rows of each scored row, to shared memory.
template <int kRowWarps, typename Shared, int kColumns>
__device__ __forceinline__ void sum_weights(Shared& shared, const ScoredRows& scored,
                                            const ScoreWeights<kColumns>& taken, int buffer, int warp, int lane) {
    const int key = WarpShare<kRowWarps>::first_key(warp) + lane % 4 * 2;
    float* sums = &shared.sums[buffer][scored.first + lane / 4][key];
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
        float c[4] = {};
        Numbers<__half>::multiply_add(c, scored.factors, transposed(taken.pairs[column][0]),
                                      transposed(taken.pairs[column][1]));
        if (scored.has(ScoredRows::kPuts)) {
            *reinterpret_cast<float2*>(sums + column * 8) = {c[0], c[1]};
        }
        if (scored.has(ScoredRows::kPutsSecond)) {
            *reinterpret_cast<float2*>(sums + 8 * kScoreStride + column * 8) = {c[2], c[3]};
        }
    }
}

}  // namespace sparsespec
