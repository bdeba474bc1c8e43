// Scores of a narrow worker's tiles: a warp's weights of 16 keys, which are where the matrix units want them, times a
// matrix that has, in the column of a scored row, for each of its packed rows the factor that makes probabilities of
// its weights, and then a column with the factors of all. What comes out goes to shared memory, to the scorer.
#pragma once

#include "pillar_attention/column_attend.cuh"
#include "pillar_attention/score.cuh"

namespace sparsespec {

// A tile's packed rows as they are scored.
template <int kEights>
struct ScoredColumns {
    // Of scored rows and their sum, eight at a time. More than two are for the widest row tiles alone.
    static constexpr int kPlaneEights = kEights < tile_rows(Way::kNarrow) / 8 ? 2 : 3;
    static_assert(kMaxBlockRows < 3 * 8, "scored rows, and their sum");

    uint32_t factors[kPlaneEights][kEights];  // the matrix, as mma.sync wants it
    int count;                                // scored rows
    float limit;                              // the lane's largest exponent that no probability above 1 can have
};

// Place among the tile's scored rows, or negative; `rows`: those that are scored.
__device__ __forceinline__ int scored_place(const RowTile& tile, const RowRange& rows, int packed) {
    return packed < tile.packed_rows() ? tile.row(packed) - rows.first : -1;
}

// Where shared memory has a packed row's log-sum-exp to be scored by.
template <typename Kind>
__device__ __forceinline__ float* known_lse(const Worker<Kind>& worker, int packed) {
    const RowTile& tile = worker.tile();
    const int place = (tile.first_row - tile.work.body_rows) * tile.group + packed;
    return &worker.shared.lse[min(max(place, 0), kMaxBlockRows * kMaxGroup - 1)];  // whatever the lengths promise
}

// The log-sum-exp that the draft of a packed row has left, of the thread's.
template <typename Kind>
__device__ __forceinline__ float lane_lse(const Worker<Kind>& worker) {
    return score_lse(worker, min(worker.thread, worker.tile().packed_rows() - 1));
}

// To shared memory, before the first tile. All consumers meet before they are read.
template <typename Kind>
__device__ __forceinline__ void put_known_lse(const Worker<Kind>& worker, float lse) {
    if (worker.job().pass.attends && worker.thread < worker.tile().packed_rows()) {
        *known_lse(worker, worker.thread) = lse;
    }
}

// Exponent of the weight that is a probability of 1; infinite where the row is not scored.
template <typename Kind>
__device__ __forceinline__ float exponent_of_one(const Worker<Kind>& worker, const RowRange& rows, int packed,
                                                 float base) {
    return scored_place(worker.tile(), rows, packed) >= 0 ? *known_lse(worker, packed) - base : INFINITY;
}

// Sums are weights times factors, and kSumOne is a probability of 1: a factor is so many powers of 2, but for those
// that fp16 does not hold, whose rows' weights are multiplied by the rest (cut_columns).
constexpr float kSumExponent = kWeightExponent + kFactorExponent, kMostFactor = 15;

// The matrix of factors for new bases.
template <typename Kind, int kEights>
__device__ __forceinline__ void set_factors(const Worker<Kind>& worker, const float (&base)[kEights][2],
                                            ScoredColumns<kEights>& scored) {
    const RowTile& tile = worker.tile();
    const RowRange rows = scored_rows(tile, 0, kEights * 8);
    scored.count = min(rows.end - rows.first, kMaxBlockRows);
    scored.limit = kMostExponent;
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
        float factor[2];
        int place[2];
#pragma unroll
        for (int index = 0; index < 2; ++index) {
            const int packed = eight * 8 + worker.lane % 4 * 2 + index;
            const float one = exponent_of_one(worker, rows, packed, base[eight][index]);
            scored.limit = fminf(scored.limit, one < kSumExponent - kMostFactor ? -INFINITY : one);
            factor[index] = exp2_fast(fminf(kSumExponent - one, kMostFactor));
            place[index] = scored_place(tile, rows, packed);
        }
        const uint32_t pair = Numbers<__half>::pack(factor[0], factor[1]);
#pragma unroll
        for (int planes = 0; planes < ScoredColumns<kEights>::kPlaneEights; ++planes) {
            const int plane = planes * 8 + worker.lane / 4;
            const bool all = plane == scored.count;
            scored.factors[planes][eight] =
                pair & ((all || place[0] == plane ? 0xffffu : 0) | (all || place[1] == plane ? 0xffff0000u : 0));
        }
    }
}

// Weights in fp16 where a row's probability may exceed 1, as that of a key which the draft did not read can: it is cut
// off there.
template <typename Kind, int kEights>
__device__ __forceinline__ void cut_columns(const Worker<Kind>& worker, const float (&base)[kEights][2],
                                            const ColumnNumbers<kEights>& weights, PackedColumns<kEights>& taken) {
    const RowRange rows = scored_rows(worker.tile(), 0, kEights * 8);
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
        float most[2], factor[2];
#pragma unroll
        for (int index = 0; index < 2; ++index) {
            const int packed = eight * 8 + worker.lane % 4 * 2 + index;
            const float one = exponent_of_one(worker, rows, packed, base[eight][index]);
            constexpr float kLeast = kSumExponent - kMostFactor, kAny = 100;
            most[index] = exp2_fast(fminf(fmaxf(one, kLeast), kAny));
            factor[index] = exp2_fast(fminf(fmaxf(kLeast - one, 0.0f), kAny));
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            taken[eight][half] = Numbers<__half>::pack(fminf(weights[eight][half * 2] * factor[0], most[0]),
                                                       fminf(weights[eight][half * 2 + 1] * factor[1], most[1]));
        }
    }
}

// The tile's sums over the packed rows of each scored row, to shared memory.
template <typename Kind, int kEights>
__device__ __forceinline__ void put_column_sums(const Worker<Kind>& worker, const ScoredColumns<kEights>& scored,
                                                const PackedColumns<kEights>& taken, int buffer) {
    const int key = worker.warp * 16 + worker.lane / 4, lane_plane = worker.lane % 4 * 2;
#pragma unroll
    for (int planes = 0; planes < ScoredColumns<kEights>::kPlaneEights; ++planes) {
        if (planes * 8 > scored.count) {
            break;
        }
        float c[4] = {};
#pragma unroll
        for (int eight = 0; eight < kEights; eight += 2) {
            const bool second = eight + 1 < kEights;
            const uint32_t a[4] = {taken[eight][0], taken[eight][1], second ? taken[eight + second][0] : 0,
                                   second ? taken[eight + second][1] : 0};
            Numbers<__half>::multiply_add(c, a, scored.factors[planes][eight],
                                          second ? scored.factors[planes][eight + second] : 0);
        }
#pragma unroll
        for (int index = 0; index < 2; ++index) {
            const int plane = planes * 8 + lane_plane + index;
            if (plane <= scored.count) {
                float* sums = &worker.shared.sums[buffer][plane][key];
                sums[0] = c[index];
                sums[8] = c[index + 2];
            }
        }
    }
}

// Weights by log-sum-exps that are known, as bases have them: probabilities times 2^kMostExponent.
template <typename Kind, int kColumns, int kEights>
__device__ __forceinline__ void weigh_by_lse(const ColumnRows<Kind, kColumns>& rows,
                                             const ColumnNumbers<kEights>& logits, ColumnNumbers<kEights>& weights) {
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
#pragma unroll
        for (int index = 0; index < 4; ++index) {
            const float exponent =
                fmaf(logits[eight][index], rows.logit_scale(eight, index % 2), -rows.base[eight][index % 2]);
            weights[eight][index] = exp2_fast(fminf(exponent, kMostExponent));
        }
    }
}

}  // namespace sparsespec
