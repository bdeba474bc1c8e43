// A team's softmax: logits become weights, row by row and online, in shared memory for the products with the values.
#pragma once

#include "pillar_attention/column_products.cuh"

namespace sparsespec {

// -inf for keys that a row does not read, but for tiles that all rows read whole. `unmasked`: a bit for each key.
template <typename Kind, int kColumns, int kEights>
__device__ __forceinline__ void mask_columns(const Worker<Kind>& worker, const ColumnRows<Kind, kColumns>& rows,
                                             int kv_tile, uint64_t unmasked, ColumnNumbers<kEights>& logits) {
    if (unmasked == ~uint64_t{0} && (kv_tile + 1) * kTileTokens <= rows.read_by_all) {
        return;
    }
    // The last key that a row reads, of those of the tile, from the lane's first one on: packed * inverse >> 16 is the
    // row, but for drafts, which have one.
    const RowTile& tile = worker.team_tile();
    const int first = worker.warp * 16 + worker.lane / 4, lane_packed = worker.lane % 4 * 2;
    const int last = tile.last_key(0) - kv_tile * kTileTokens - first;
    const uint32_t inverse = tile.work.drafts ? 0 : tile.inverse;
    const uint64_t bits = unmasked >> first;
    const int least[2] = {(bits & 1) != 0 ? 0 : INT32_MAX, (bits & 0x100) != 0 ? 8 : INT32_MAX};
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
#pragma unroll
        for (int index = 0; index < 4; ++index) {
            const int row = static_cast<int>((eight * 8 + lane_packed + index % 2) * inverse >> 16);
            logits[eight][index] = least[index / 2] <= last + row ? logits[eight][index] : -INFINITY;
        }
    }
}

// Weights of logits, as if no base moved; returns the largest exponent.
template <typename Kind, int kColumns, int kEights>
__device__ __forceinline__ float weigh_columns(const ColumnRows<Kind, kColumns>& rows,
                                               const ColumnNumbers<kEights>& logits, ColumnNumbers<kEights>& weights) {
    float most = -INFINITY;
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
#pragma unroll
        for (int index = 0; index < 4; ++index) {
            const float exponent = rows.exponent(logits[eight], eight, index);
            most = fmaxf(most, exponent);
            weights[eight][index] = exp2_fast(exponent);
        }
    }
    return most;
}

// The largest logit of each of the lane's columns, over all keys of the tiles. `scratch`: [4, kColumns].
template <typename Kind, int kColumns, int kTiles, int kEights>
__device__ __forceinline__ void find_most(const Worker<Kind>& worker, const ColumnRows<Kind, kColumns>& rows,
                                          const ColumnNumbers<kEights> (&logits)[kTiles], float* scratch,
                                          float (&most)[kEights][2]) {
    const int packed = worker.lane % 4 * 2;
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
        float pair[2];
#pragma unroll
        for (int index = 0; index < 2; ++index) {
            pair[index] = -INFINITY;
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
                pair[index] = fmaxf(pair[index], fmaxf(logits[tile][eight][index], logits[tile][eight][index + 2]));
            }
            pair[index] *= rows.logit_scale(eight, index);
#pragma unroll
            for (int step = 4; step < 32; step *= 2) {
                pair[index] = fmaxf(pair[index], __shfl_xor_sync(0xffffffffu, pair[index], step));
            }
        }
        if (worker.lane < 4) {
            *reinterpret_cast<float2*>(scratch + worker.warp * kColumns + eight * 8 + packed) = {pair[0], pair[1]};
        }
    }
    team_sync(worker);
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
        most[eight][0] = most[eight][1] = -INFINITY;
#pragma unroll
        for (int warp = 0; warp < kTeamThreads / 32; ++warp) {
            const float2 pair = *reinterpret_cast<const float2*>(scratch + warp * kColumns + eight * 8 + packed);
            most[eight][0] = fmaxf(most[eight][0], pair.x);
            most[eight][1] = fmaxf(most[eight][1], pair.y);
        }
    }
}

// Moves the bases of rows whose weights would grow too large.
template <typename Kind, int kColumns, int kTiles, int kEights>
__device__ __forceinline__ void move_bases(const Worker<Kind>& worker, ColumnRows<Kind, kColumns>& rows,
                                           const ColumnNumbers<kEights> (&logits)[kTiles], float* scratch) {
    float most[kEights][2];
    find_most(worker, rows, logits, scratch, most);
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
        float factor[2];
#pragma unroll
        for (int index = 0; index < 2; ++index) {
            const float base = rows.base[eight][index];
            const bool moves = most[eight][index] > base + kMostExponent;
            rows.base[eight][index] = moves ? most[eight][index] - kMoveExponent : base;
            factor[index] = moves ? exp2_fast(base - rows.base[eight][index]) : 1;
            rows.sum[eight][index] *= factor[index];
        }
#pragma unroll
        for (int block = 0; block < Kind::kHeadBlocks; ++block) {
#pragma unroll
            for (int index = 0; index < 4; ++index) {
                rows.output[block][eight][index] *= factor[index % 2];
            }
        }
    }
}

// Weights in 16 bits: of each eight columns, of the lane's first key and of the one 8 further on.
template <int kEights>
using PackedColumns = uint32_t[kEights][2];

template <typename T, int kEights>
__device__ __forceinline__ void pack_columns(const ColumnNumbers<kEights>& weights, PackedColumns<kEights>& packed) {
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
        packed[eight][0] = Numbers<T>::pack(weights[eight][0], weights[eight][1]);
        packed[eight][1] = Numbers<T>::pack(weights[eight][2], weights[eight][3]);
    }
}

// To shared memory, transposed on the way: a row for each packed row.
template <typename Kind, int kEights>
__device__ __forceinline__ void put_columns(const Worker<Kind>& worker, unsigned char* tile,
                                            const PackedColumns<kEights>& packed) {
    const int lane = worker.lane;
    const uint32_t at =
        shared_address(tile) + WeightLayout::offset(lane / 16 * 8 + lane % 8, worker.warp * 2 + lane / 8 % 2);
#pragma unroll
    for (int eight = 0; eight + 1 < kEights; eight += 2) {
        store_matrices_transposed(at + eight * WeightLayout::kEightRows, packed[eight][0], packed[eight][1],
                                  packed[eight + 1][0], packed[eight + 1][1]);
    }
    if constexpr (kEights % 2 != 0) {
        constexpr int kLast = kEights - 1;
        store_two_matrices_transposed(at + kLast * WeightLayout::kEightRows, packed[kLast][0], packed[kLast][1]);
    }
}

// What products with the values read: the values, and the weights that this warp wrote.
template <typename Kind, int kTiles>
__device__ __forceinline__ void see_values(const Worker<Kind>& worker, const RingCursor (&values)[kTiles]) {
    if constexpr (Kind::kFp8) {
        products_see_copies();
    } else {
        wait_for_stages<true>(worker, values);
    }
}

// What has come of weights.
struct Softened {
    bool moved;  // a base
    float most;  // the largest exponent of the lane's weights
};

// Logits become weights, in shared memory for the products with the values. Weights are left as they are summed, for
// the scores. A base seldom moves but before the first tile's weights: so weights are written as if none did, and where
// the consumers meet each says whether one must.
template <typename Kind, int kColumns, int kTiles, int kEights>
__device__ __forceinline__ Softened soften_columns(const Worker<Kind>& worker, ColumnRows<Kind, kColumns>& rows,
                                                   const ColumnNumbers<kEights> (&logits)[kTiles],
                                                   const RingCursor (&values)[kTiles], int buffer, bool is_first,
                                                   ColumnNumbers<kEights> (&weights)[kTiles],
                                                   PackedColumns<kEights> (&packed)[kTiles]) {
    Softened softened{is_first, 0};
    bool moves = is_first;
#pragma unroll 1
    while (true) {
        if (moves) {  // nobody reads the other buffer any more
            move_bases(worker, rows, logits, reinterpret_cast<float*>(worker.weights(buffer ^ 1)));
        }
        softened.most = -INFINITY;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            softened.most = fmaxf(softened.most, weigh_columns(rows, logits[tile], weights[tile]));
            pack_columns<typename Kind::Product>(weights[tile], packed[tile]);
            put_columns(worker, tile_weights<kColumns, kTiles>(worker, buffer, tile), packed[tile]);
        }
        see_values(worker, values);
        const bool exceeds = any_of_team(worker, softened.most > kMostExponent);
        if (moves || !exceeds) {
            break;  // once moved is enough, also where logits are so large that their rounding exceeds
        }
        moves = softened.moved = true;
    }
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            rows.sum[eight][0] += weights[tile][eight][0] + weights[tile][eight][2];
            rows.sum[eight][1] += weights[tile][eight][1] + weights[tile][eight][3];
        }
    }
    return softened;
}

}  // namespace sparsespec
