// With wgmma, all but many rows that are not scored (consume_ahead.cuh): the packed rows are columns of the matrix
// products, and keys, or a value's numbers, are their rows. S^T = K Q^T has the 64 keys of a tile for its rows, however
// many packed rows there are, so that no product is spent on rows that do not exist, and each lane weighs only what is
// there. K and V are read where they lie; queries and weights go through shared memory. Of a wide worker's two teams
// each has half of the row tile's rows, and both the same stages.
//
// Here: where they lie there, and what a lane keeps in registers.
#pragma once

#include "pillar_attention/warp_rows.cuh"
#include "pillar_attention/wgmma.cuh"
#include "pillar_attention/worker.cuh"

namespace sparsespec {

// The base of a row that has read no key: the first one moves it.
constexpr float kLowestBase = -0x1p100f;
// Weights are 2^(logit - base). A base moves where a weight exceeds 2^kMostExponent, to kMoveExponent below the row's
// largest logit so far: larger ones seldom move it again, and in fp16 weights keep 11 bits down to 2e-7 of the largest.
constexpr float kMostExponent = 14;
constexpr float kMoveExponent = 8;

// Packed rows, in row tiles of kColumns (a multiple of 8) or fewer, as a lane of a team holds them.
// Lane l holds of each eight columns 2 (l % 4) and the next one; of S^T keys l / 4 and l / 4 + 8 of its warp's 16; of
// the output O^T two numbers of each 64, see output_number. Bases are alike in all lanes and warps with the column.
template <typename Kind, int kColumns>
struct ColumnRows {
    static constexpr int kEights = kColumns / 8;

    float output[Kind::kHeadBlocks][kEights][4];
    float base[kEights][2];                    // in log2
    float sum[kEights][2];                     // of this lane's keys only, until the end
    float scale[Kind::kFp8 ? kEights : 1][2];  // of products of query and key, to logits in log2
    int read_by_all;                           // keys that even the tile's first row reads

    __device__ __forceinline__ float logit_scale(int eight, int index) const {
        return scale[Kind::kFp8 ? eight : 0][index];
    }
    // Of the weight that logit `index` makes, of the lane's four in eight columns.
    __device__ __forceinline__ float exponent(const float (&logits)[4], int eight, int index) const {
        return fmaf(logits[index], logit_scale(eight, index % 2), -base[eight][index % 2]);
    }
};

// Which number of a head the lane holds as half `half` (rows l / 4, or l / 4 + 8) of block `block` of O^T. Of 16-bit
// values: as the matrix units take them. Of FP8 values, which lanes bring to the matrix units: numbers that they find
// side by side.
template <typename Kind>
__device__ __forceinline__ int output_number(int warp, int lane, int block, int half) {
    if constexpr (Kind::kFp8 && Kind::kHeadDim == 128) {
        return warp * 32 + lane / 4 * 4 + block * 2 + half;
    } else if constexpr (Kind::kFp8) {
        return block * 64 + warp * 16 + lane / 4 * 2 + half;
    } else {
        return block * 64 + warp * 16 + lane / 4 + half * 8;
    }
}

// Of what the products of queries and keys multiply.
template <typename Kind>
using KeyProduct = std::conditional_t<Kind::kFp8, __nv_fp8_e4m3, typename Kind::Product>;

// Weights: a row for each packed row, with the tile's 64 keys. Queries: a row with 2 * head_dim bytes, numbers of 16
// bits; with an FP8 pool the two parts of put_split_eight, one after the other.
using WeightLayout = TileLayout<kTileTokens * 2, Way::kNarrow>;
template <typename Kind>
using QueryLayout = TileLayout<Kind::kHeadDim * 2, Way::kWide>;

// Where the keys and the values are of the tiles that a team takes at a time. Of fewer than kTiles, the others are the
// first one again, masked.
template <int kTiles>
struct TileStages {
    RingCursor keys[kTiles];
    RingCursor values[kTiles];
    int count;

    template <typename Kind>
    __device__ __forceinline__ TileStages(const Worker<Kind>& worker, RingCursor& stages, int tiles)
        : count(min(tiles, kTiles)) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            RingCursor at = stages;
            keys[tile] = tile < count ? at : keys[0];
            at.advance(worker.num_stages);
            values[tile] = tile < count ? at : values[0];
            at.advance(worker.num_stages);
            stages = tile < count ? at : stages;
        }
    }
};

// A consumer's, until all of the stages are full. kFences: as in wait_for_stage.
template <bool kFences, int kTiles, typename Kind>
__device__ __forceinline__ void wait_for_stages(const Worker<Kind>& worker, const RingCursor (&stages)[kTiles]) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
        barrier_wait(&worker.shared.pipeline.full[stages[tile].place], stages[tile].parity);
    }
    __syncwarp();
    if constexpr (kFences) {
        products_see_copies();
    }
}

template <int kTiles, typename Kind>
__device__ __forceinline__ void release_stages(const Worker<Kind>& worker, const RingCursor (&stages)[kTiles],
                                               int count) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
        if (tile < count) {
            barrier_arrive(&worker.shared.pipeline.empty[stages[tile].place]);
        }
    }
}

}  // namespace sparsespec
