// A team's matrix products: S^T = K Q^T and O^T += V^T P^T.
#pragma once

#include "pillar_attention/column_query.cuh"

namespace sparsespec {

// A tile's logits, and then weights.
template <int kEights>
using ColumnNumbers = float[kEights][4];

// The products of the tile's keys and the queries, between products_begin and products_commit. Queries in two parts go
// through the keys twice.
template <typename Kind, int kEights>
__device__ __forceinline__ void multiply_column_keys(const Worker<Kind>& worker, int stage,
                                                     ColumnNumbers<kEights>& logits) {
    using Keys = typename Kind::StageLayout;
    using Queries = QueryLayout<Kind>;
    constexpr int kDepth = Kind::kKeyBytes / 32;
    const uint64_t keys = matrix_descriptor<Keys>(worker.stage(stage));
    const uint64_t queries = matrix_descriptor<Queries>(worker.queries());
#pragma unroll
    for (int step = 0; step < Kind::kHeadDim / 16; ++step) {
        const int depth = step % kDepth;
        const int key_bytes = depth / Keys::kSteps * Keys::kBlockBytes + depth % Keys::kSteps * 32;
        const int query_bytes = step / Queries::kSteps * Queries::kBlockBytes + step % Queries::kSteps * 32;
        ColumnProducts<KeyProduct<Kind>, false>::multiply_add(logits, keys + key_bytes / 16, queries + query_bytes / 16,
                                                              step > 0);
    }
}

template <typename Kind, int kTiles, int kEights>
__device__ __forceinline__ void start_column_keys(const Worker<Kind>& worker, const RingCursor (&keys)[kTiles],
                                                  ColumnNumbers<kEights> (&logits)[kTiles]) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
        hold(logits[tile]);
    }
    products_begin();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
        multiply_column_keys(worker, keys[tile].place, logits[tile]);
    }
    products_commit();
}

template <int kTiles, int kEights>
__device__ __forceinline__ void wait_for_logits(ColumnNumbers<kEights> (&logits)[kTiles]) {
    products_wait();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
        hold(logits[tile]);
    }
}

// An FP8 pool's values, as the lane brings them to the matrix units in fp16: of each 16 keys, of each 64 numbers.
template <typename Kind>
using WideValues = uint32_t[Kind::kFp8 ? kTileTokens / 16 : 1][Kind::kHeadBlocks][4];

// Of 16 keys, a lane has those from 2 (lane % 4) on, two and two that lie 8 further on, and of each two of the head's
// numbers, side by side: see output_number. Two such numbers are 16 bits to a matrix load, which transposes them, so
// that it brings both keys' at once.
template <typename Kind>
__device__ __forceinline__ void widen_pairs(const Worker<Kind>& worker, int stage, WideValues<Kind>& values) {
    using Layout = typename Kind::StageLayout;
    constexpr int kLoaded = 4;  // times eight keys
#pragma unroll
    for (int block = 0; block < Kind::kHeadBlocks; ++block) {
        const int chunk = min(block * 4 + worker.warp, Kind::kKeyBytes / 16 - 1);  // beyond the head it is any
        const uint32_t from = shared_address(worker.stage(stage)) + Layout::offset(worker.lane, chunk);
#pragma unroll
        for (int first = 0; first < kTileTokens / 8; first += kLoaded) {
            uint32_t loaded[kLoaded];
            load_matrices_transposed(loaded, from + first * Layout::kEightRows);
#pragma unroll
            for (int eight = 0; eight < kLoaded; ++eight) {
                const uint2 pairs = fp8_to_half(__byte_perm(loaded[eight], 0, 0x3120));  // of a number, both keys'
                uint32_t (&four)[4] = values[(first + eight) / 2][block];
                four[eight % 2 * 2] = pairs.x, four[eight % 2 * 2 + 1] = pairs.y;
            }
        }
    }
}

// The same where a lane has four numbers of each key, which plain loads bring: with two matrix loads instead drafts
// beside verifications were slower.
template <typename Kind>
__device__ __forceinline__ void widen_fours(const Worker<Kind>& worker, int stage, WideValues<Kind>& values) {
    using Layout = typename Kind::StageLayout;
    const int key = worker.lane % 4 * 2, number = output_number<Kind>(worker.warp, worker.lane, 0, 0);
    const unsigned char* from[2];  // of the first key and the next
#pragma unroll
    for (int index = 0; index < 2; ++index) {
        from[index] = worker.stage(stage) + Layout::offset(key + index, number / 16) + number % 16;
    }
#pragma unroll
    for (int eight = 0; eight < kTileTokens / 8; ++eight) {
        const uint32_t first = *reinterpret_cast<const uint32_t*>(from[0] + eight * Layout::kEightRows);
        const uint32_t second = *reinterpret_cast<const uint32_t*>(from[1] + eight * Layout::kEightRows);
#pragma unroll
        for (int block = 0; block < 2; ++block) {
            const uint2 pairs = fp8_to_half(__byte_perm(first, second, block == 0 ? 0x5140 : 0x7362));
            uint32_t (&four)[4] = values[eight / 2][block];
            four[eight % 2 * 2] = pairs.x, four[eight % 2 * 2 + 1] = pairs.y;
        }
    }
}

template <typename Kind>
__device__ __forceinline__ void widen_column_values(const Worker<Kind>& worker, int stage, WideValues<Kind>& values) {
    if constexpr (Kind::kHeadDim == 128) {
        widen_fours(worker, stage, values);
    } else {
        widen_pairs(worker, stage, values);
    }
}

// Where a tile's weights lie, of those taken at a time.
template <int kColumns, int kTiles, typename Kind>
__device__ __forceinline__ unsigned char* tile_weights(const Worker<Kind>& worker, int buffer, int tile) {
    static_assert(kTiles * kColumns * WeightLayout::kRowBytes <= kWeightBytes, "a buffer");
    return worker.weights(buffer) + tile * kColumns * WeightLayout::kRowBytes;
}

// The products of a tile's values and weights. `stage`: of 16-bit values.
template <typename Kind, int kColumns>
__device__ __forceinline__ void multiply_column_values(const Worker<Kind>& worker, ColumnRows<Kind, kColumns>& rows,
                                                       int stage, const WideValues<Kind>& wide,
                                                       const unsigned char* tile) {
    using Layout = typename Kind::ValueLayout;
    using Product = typename Kind::Product;
    const uint64_t values = matrix_descriptor<Layout>(worker.stage(stage));
    const uint64_t weights = matrix_descriptor<WeightLayout>(tile);
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
}

template <typename Kind, int kColumns, int kTiles>
__device__ __forceinline__ void start_column_values(const Worker<Kind>& worker, ColumnRows<Kind, kColumns>& rows,
                                                    const RingCursor (&values)[kTiles],
                                                    const WideValues<Kind> (&wide)[kTiles], int buffer) {
#pragma unroll
    for (int block = 0; block < Kind::kHeadBlocks; ++block) {
        hold(rows.output[block]);
    }
    products_begin();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
        multiply_column_values(worker, rows, values[tile].place, wide[tile],
                               tile_weights<kColumns, kTiles>(worker, buffer, tile));
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

}  // namespace sparsespec
