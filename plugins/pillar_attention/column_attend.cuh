// What a consumer of a narrow worker does with a tile: S^T = K Q^T, online softmax over the rows, O^T += V^T P^T.
#pragma once

#include "pillar_attention/column_query.cuh"

namespace sparsespec {

// A tile's logits, and then weights.
template <int kEights>
using ColumnNumbers = float[kEights][4];

// Starts the products of the tile's keys and the queries. Queries in two parts go through the keys twice.
template <typename Kind, int kEights>
__device__ __forceinline__ void start_column_keys(const Worker<Kind>& worker, int stage,
                                                  ColumnNumbers<kEights>& logits) {
    using Keys = typename Kind::StageLayout;
    using Queries = QueryLayout<Kind>;
    constexpr int kDepth = Kind::kKeyBytes / 32;
    const uint64_t keys = matrix_descriptor<Keys>(worker.stage(stage));
    const uint64_t queries = matrix_descriptor<Queries>(worker.queries());
    hold(logits);
    products_begin();
#pragma unroll
    for (int step = 0; step < Kind::kHeadDim / 16; ++step) {
        const int depth = step % kDepth;
        const int key_bytes = depth / Keys::kSteps * Keys::kBlockBytes + depth % Keys::kSteps * 32;
        const int query_bytes = step / Queries::kSteps * Queries::kBlockBytes + step % Queries::kSteps * 32;
        ColumnProducts<KeyProduct<Kind>, false>::multiply_add(logits, keys + key_bytes / 16, queries + query_bytes / 16,
                                                              step > 0);
    }
    products_commit();
}

// An FP8 pool's values, as the lane brings them to the matrix units in fp16: of each 16 keys, of each 64 numbers.
template <typename Kind>
using WideValues = uint32_t[Kind::kFp8 ? kTileTokens / 16 : 1][Kind::kHeadBlocks][4];

// Of 16 keys, a lane has those from 2 (lane % 4) on, two and two that lie 8 further on, and of each as many of the
// head's numbers, side by side, as it has rows of O^T: see output_number.
template <typename Kind>
__device__ __forceinline__ void widen_column_values(const Worker<Kind>& worker, int stage, WideValues<Kind>& values) {
    using Layout = typename Kind::StageLayout;
    constexpr bool kFour = Kind::kHeadDim == 128;
    using Loaded = std::conditional_t<kFour, uint32_t, uint16_t>;
    const int key = worker.lane % 4 * 2;
#pragma unroll
    for (int block = 0; block < (kFour ? 1 : Kind::kHeadBlocks); ++block) {
        const int number = output_number<Kind>(worker.warp, worker.lane, block, 0);
        const bool exists = Kind::kHeadDim % 64 == 0 || number < Kind::kHeadDim;
        const unsigned char* from[2];  // of the first key and the next
#pragma unroll
        for (int index = 0; index < 2; ++index) {
            from[index] = worker.stage(stage) + Layout::offset(key + index, number / 16) + number % 16;
        }
#pragma unroll
        for (int step = 0; step < kTileTokens / 16; ++step) {
            uint32_t pairs[2][2];  // of keys: theirs and those 8 further on; of numbers
#pragma unroll
            for (int eight = 0; eight < 2; ++eight) {
                const int offset = (step * 2 + eight) * Layout::kEightRows;
                const uint32_t first = exists ? *reinterpret_cast<const Loaded*>(from[0] + offset) : 0;
                const uint32_t second = exists ? *reinterpret_cast<const Loaded*>(from[1] + offset) : 0;
                pairs[eight][0] = __byte_perm(first, second, 0x5140);
                pairs[eight][1] = __byte_perm(first, second, 0x7362);
            }
#pragma unroll
            for (int part = 0; part < (kFour ? 2 : 1); ++part) {
                const uint2 low = fp8_to_half(pairs[0][part]), high = fp8_to_half(pairs[1][part]);
                uint32_t (&four)[4] = values[step][block + part];
                four[0] = low.x, four[1] = low.y, four[2] = high.x, four[3] = high.y;
            }
        }
    }
}

// Starts the products of the tile's values and weights. `stage`: of 16-bit values.
template <typename Kind, int kColumns>
__device__ __forceinline__ void start_column_values(const Worker<Kind>& worker, ColumnRows<Kind, kColumns>& rows,
                                                    int stage, const WideValues<Kind>& wide, int buffer) {
    using Layout = typename Kind::ValueLayout;
    using Product = typename Kind::Product;
    const uint64_t values = matrix_descriptor<Layout>(worker.stage(stage));
    const uint64_t weights = matrix_descriptor<WeightLayout>(worker.weights(buffer));
#pragma unroll
    for (int block = 0; block < Kind::kHeadBlocks; ++block) {
        hold(rows.output[block]);
    }
    products_begin();
#pragma unroll
    for (int step = 0; step < kTileTokens / 16; ++step) {
#pragma unroll
        for (int block = 0; block < Kind::kHeadBlocks; ++block) {
            if constexpr (Kind::kFp8) {
                ColumnProducts<Product, false>::multiply_add(rows.output[block], wide[step][block], weights + step * 2,
                                                             true);
            } else {
                constexpr int kBlockBytes = 128 / Layout::kRowBytes * Layout::kBlockBytes;
                ColumnProducts<Product, true>::multiply_add(
                    rows.output[block], values + (block * kBlockBytes + step * 2 * Layout::kEightRows) / 16,
                    weights + step * 2, true);
            }
        }
    }
    products_commit();
}

template <typename Kind, int kColumns>
__device__ __forceinline__ void wait_for_output(ColumnRows<Kind, kColumns>& rows) {
    products_wait();
#pragma unroll
    for (int block = 0; block < Kind::kHeadBlocks; ++block) {
        hold(rows.output[block]);
    }
}

// -inf for keys that a row does not read, but for tiles that all rows read whole. `unmasked`: a bit for each key.
template <typename Kind, int kColumns, int kEights>
__device__ __forceinline__ void mask_columns(const Worker<Kind>& worker, const ColumnRows<Kind, kColumns>& rows,
                                             int kv_tile, uint64_t unmasked, ColumnNumbers<kEights>& logits) {
    if (unmasked == ~uint64_t{0} && (kv_tile + 1) * kTileTokens <= rows.read_by_all) {
        return;
    }
    // The last key that a row reads, of those of the tile, from the lane's first one on: packed * inverse >> 16 is the
    // row, but for drafts, which have one.
    const RowTile& tile = worker.tile();
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
            const float exponent =
                fmaf(logits[eight][index], rows.logit_scale(eight, index % 2), -rows.base[eight][index % 2]);
            most = fmaxf(most, exponent);
            weights[eight][index] = exp2_fast(exponent);
        }
    }
    return most;
}

// The largest logit of each of the lane's columns, over all keys of the tile. `scratch`: [4, kColumns].
template <typename Kind, int kColumns, int kEights>
__device__ __forceinline__ void find_most(const Worker<Kind>& worker, const ColumnRows<Kind, kColumns>& rows,
                                          const ColumnNumbers<kEights>& logits, float* scratch,
                                          float (&most)[kEights][2]) {
    const int packed = worker.lane % 4 * 2;
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
        float pair[2];
#pragma unroll
        for (int index = 0; index < 2; ++index) {
            pair[index] = fmaxf(logits[eight][index], logits[eight][index + 2]) * rows.logit_scale(eight, index);
#pragma unroll
            for (int step = 4; step < 32; step *= 2) {
                pair[index] = fmaxf(pair[index], __shfl_xor_sync(0xffffffffu, pair[index], step));
            }
        }
        if (worker.lane < 4) {
            *reinterpret_cast<float2*>(scratch + worker.warp * kColumns + eight * 8 + packed) = {pair[0], pair[1]};
        }
    }
    consumer_sync(worker);
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
        most[eight][0] = most[eight][1] = -INFINITY;
#pragma unroll
        for (int warp = 0; warp < Kind::kWarps; ++warp) {
            const float2 pair = *reinterpret_cast<const float2*>(scratch + warp * kColumns + eight * 8 + packed);
            most[eight][0] = fmaxf(most[eight][0], pair.x);
            most[eight][1] = fmaxf(most[eight][1], pair.y);
        }
    }
}

// Moves the bases of rows whose weights would grow too large.
template <typename Kind, int kColumns, int kEights>
__device__ __forceinline__ void move_bases(const Worker<Kind>& worker, ColumnRows<Kind, kColumns>& rows,
                                           const ColumnNumbers<kEights>& logits, float* scratch) {
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
__device__ __forceinline__ void put_columns(const Worker<Kind>& worker, int buffer,
                                            const PackedColumns<kEights>& packed) {
    const int lane = worker.lane;
    const uint32_t at = shared_address(worker.weights(buffer)) +
                        WeightLayout::offset(lane / 16 * 8 + lane % 8, worker.warp * 2 + lane / 8 % 2);
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
template <typename Kind>
__device__ __forceinline__ void see_values(const Worker<Kind>& worker, const RingCursor& values) {
    if constexpr (Kind::kFp8) {
        products_see_copies();
    } else {
        wait_for_stage(worker, values);
    }
}

// What has come of a tile's weights.
struct Softened {
    bool moved;  // a base
    float most;  // the largest exponent of the lane's weights
};

// Logits become weights, in shared memory for the products with the values. Weights are left as they are summed, for
// the scores. A base seldom moves but before the first tile's weights: so weights are written as
// if none did, and where the consumers meet each says whether one must.
template <typename Kind, int kColumns, int kEights>
__device__ __forceinline__ Softened soften_columns(const Worker<Kind>& worker, ColumnRows<Kind, kColumns>& rows,
                                                   const ColumnNumbers<kEights>& logits, const RingCursor& values,
                                                   int buffer, bool is_first, ColumnNumbers<kEights>& weights,
                                                   PackedColumns<kEights>& packed) {
    Softened softened{is_first, 0};
    bool moves = is_first;
#pragma unroll 1
    while (true) {
        if (moves) {  // nobody reads the other buffer any more
            move_bases(worker, rows, logits, reinterpret_cast<float*>(worker.weights(buffer ^ 1)));
        }
        softened.most = weigh_columns(rows, logits, weights);
        pack_columns<typename Kind::Product>(weights, packed);
        put_columns(worker, buffer, packed);
        see_values(worker, values);
        moves = any_consumer(worker, softened.most > kMostExponent);
        if (!moves) {
            break;
        }
        softened.moved = true;
    }
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
        rows.sum[eight][0] += weights[eight][0] + weights[eight][2];
        rows.sum[eight][1] += weights[eight][1] + weights[eight][3];
    }
    return softened;
}

}  // namespace sparsespec
