// Scores of a narrow worker's tiles: a warp's weights of 16 keys, which are where the matrix units want them, times a
// matrix that has, in the column of a scored row, for each of its packed rows the factor that makes probabilities of
// its weights, and then a column with the factors of all. What comes out goes to shared memory, to the scorer.
#pragma once

#include "pillar_attention/column_softmax.cuh"
#include "pillar_attention/score.cuh"

namespace sparsespec {

// A tile's packed rows as they are scored.
template <typename Kind, int kEights>
struct ScoredColumns {
    // Of scored rows and their sum, eight at a time. More than two, or one where each team has a part of the rows, are
    // for the most columns alone.
    static constexpr int kPlaneEights = kEights == kTeamRows / 8 ? 3 : Kind::kWay == Way::kNarrow ? 2 : 1;
    static constexpr int kMostRows = kPlaneEights * 8 - 1;
    static_assert(kMaxBlockRows < 3 * 8, "scored rows, and their sum");

    uint32_t factors[kPlaneEights][kEights];  // the matrix, as mma.sync wants it
    int count;                                // scored rows
    int first;                                // row of `sums` that the first has
    int sum;                                  // and their sum
    float limit;                              // the lane's largest exponent that no probability above 1 can have
};

// Place among the tile's scored rows, or negative; `rows`: those that are scored.
__device__ __forceinline__ int scored_place(const RowTile& tile, const RowRange& rows, int packed) {
    return packed < tile.packed_rows() ? tile.row(packed) - rows.first : -1;
}

// The log-sum-exp, in log2, that the thread's packed row is scored by.
template <typename Kind>
__device__ __forceinline__ float lane_lse(const Worker<Kind>& worker) {
    const RowTile& tile = worker.team_tile();
    return score_lse(worker, tile, min(worker.thread, tile.packed_rows() - 1));
}

// To shared memory, before the first tile. The team meets before they are read.
template <typename Kind>
__device__ __forceinline__ void put_team_lse(const Worker<Kind>& worker, float lse) {
    if (worker.thread < worker.team_tile().packed_rows()) {
        worker.shared.team_lse[worker.team][worker.thread] = lse;
    }
}

// Exponent of the weight that is a probability of 1; infinite where the row is not scored.
template <typename Kind>
__device__ __forceinline__ float exponent_of_one(const Worker<Kind>& worker, const RowRange& rows, int packed,
                                                 float base) {
    return scored_place(worker.team_tile(), rows, packed) >= 0 ? worker.shared.team_lse[worker.team][packed] - base
                                                               : INFINITY;
}

// Sums are weights times factors, and kSumOne is a probability of 1: a factor is so many powers of 2, but for those
// that fp16 does not hold, whose rows' weights are multiplied by the rest (cut_columns).
constexpr float kSumExponent = kWeightExponent + kFactorExponent, kMostFactor = 15;

// Scored rows of all teams follow each other, then the teams' sums.
template <typename Kind, int kEights>
__device__ __forceinline__ void place_sums(const Worker<Kind>& worker, const RowRange& rows,
                                           ScoredColumns<Kind, kEights>& scored) {
    scored.count = min(rows.end - rows.first, kMaxBlockRows);
    scored.first = 0;
    scored.sum = scored.count;
    if constexpr (num_teams(Kind::kWay) > 1) {
        const RowTile& tile = worker.tile();
        const int all = scored_row_count(tile);
        scored.first = worker.team == 0 ? 0 : all - scored.count;
        scored.sum = all + worker.team;
    }
}

// The matrix of factors for new bases.
template <typename Kind, int kEights>
__device__ __forceinline__ void set_factors(const Worker<Kind>& worker, const float (&base)[kEights][2],
                                            ScoredColumns<Kind, kEights>& scored) {
    const RowTile& tile = worker.team_tile();
    const RowRange rows = scored_rows(tile, 0, kEights * 8);
    place_sums(worker, rows, scored);
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
        for (int planes = 0; planes < ScoredColumns<Kind, kEights>::kPlaneEights; ++planes) {
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
    const RowRange rows = scored_rows(worker.team_tile(), 0, kEights * 8);
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

// The sums of eight scored rows over their packed rows, of the warp's 16 keys.
template <int kEights>
__device__ __forceinline__ void sum_columns(const uint32_t (&factors)[kEights], const PackedColumns<kEights>& taken,
                                            float (&c)[4]) {
    c[0] = c[1] = c[2] = c[3] = 0;
#pragma unroll
    for (int eight = 0; eight < kEights; eight += 2) {
        const bool second = eight + 1 < kEights;
        const uint32_t a[4] = {taken[eight][0], taken[eight][1], second ? taken[eight + second][0] : 0,
                               second ? taken[eight + second][1] : 0};
        Numbers<__half>::multiply_add(c, a, factors[eight], second ? factors[eight + second] : 0);
    }
}

// The tile's sums over the packed rows of each scored row, to shared memory.
template <typename Kind, int kEights>
__device__ __forceinline__ void put_column_sums(const Worker<Kind>& worker, const ScoredColumns<Kind, kEights>& scored,
                                                const PackedColumns<kEights>& taken, int buffer) {
    constexpr int kPlaneEights = ScoredColumns<Kind, kEights>::kPlaneEights;
    const int key = worker.warp * 16 + worker.lane / 4, lane_plane = worker.lane % 4 * 2;
    float c[kPlaneEights][4];
#pragma unroll
    for (int planes = 0; planes < kPlaneEights; ++planes) {
        sum_columns(scored.factors[planes], taken, c[planes]);
    }
#pragma unroll
    for (int planes = 0; planes < kPlaneEights; ++planes) {
#pragma unroll
        for (int index = 0; index < 2; ++index) {
            const int plane = planes * 8 + lane_plane + index;
            if (plane <= scored.count) {
                const bool is_alone = num_teams(Kind::kWay) == 1;
                const int row = is_alone ? plane : plane < scored.count ? scored.first + plane : scored.sum;
                float* sums = &worker.shared.sums[buffer][row][key];
                sums[0] = c[planes][index];
                sums[8] = c[planes][index + 2];
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
            const float exponent = rows.exponent(logits[eight], eight, index);
            weights[eight][index] = exp2_fast(fminf(exponent, kMostExponent));
        }
    }
}

}  // namespace sparsespec
