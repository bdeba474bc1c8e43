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
