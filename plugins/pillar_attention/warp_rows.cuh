// How a row tile is divided over the warps of a worker, and what each keeps in registers.
#pragma once

#include "pillar_attention/worker.cuh"

namespace sparsespec {

// Without wgmma, weights of a tile are 2^(logit - base) with a base so far below the largest logit: in fp16, as scores
// take them, they keep 11 bits down to 4e-9 of the largest, where they would end at 6e-5.
constexpr float kWeightExponent = 14;

// A warp's 16 packed rows: queries, and what their softmax has come to over the warp's keys. In log2; lane l holds
// parts of rows l / 4 and l / 4 + 8.
template <int kHeadDim>
struct WarpRows {
    uint32_t q[kHeadDim / 16][4];  // as query.cuh says
    float output[kHeadDim / 8][4];
    float base[2];   // of the weights
    float sum[2];    // of this lane's keys only, until the end
    float scale[2];  // of products of query and key, to logits
    int last_key[2];
    int read_by_all;  // keys that even the tile's first row reads
    bool has_rows;
};

// Before the first tile: they have read nothing. `scale`: of products of query and key.
template <int kHeadDim>
__device__ __forceinline__ void open_rows(WarpRows<kHeadDim>& mine, float scale) {
#pragma unroll
    for (int column = 0; column < kHeadDim / 8; ++column) {
        mine.output[column][0] = mine.output[column][1] = mine.output[column][2] = mine.output[column][3] = 0;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        mine.scale[half] = scale;
        mine.base[half] = -INFINITY;
        mine.sum[half] = 0;
    }
}

// Rows of the tile go over kRowWarps warps, keys over the others: few rows leave warps free to split the keys. Not so
// with wgmma, whose products all warps share.
template <int kRowWarps>
struct WarpShare {
    static constexpr int kKeyWarps = kRowWarps < 4 ? 4 / kRowWarps : 1;
    static constexpr int kKeys = kTileTokens / kKeyWarps;

    __device__ static int row_warp(int warp) { return warp / kKeyWarps; }
    __device__ static int first_key(int warp) { return warp % kKeyWarps * kKeys; }
};

// The warp's first packed row.
template <int kRowWarps, typename Kind>
__device__ __forceinline__ int first_row(const Worker<Kind>& worker) {
    return WarpShare<kRowWarps>::row_warp(worker.warp) * 16;
}

constexpr float kLog2E = 1.4426950408889634f;

// Scales a product of query and key to a logit in log2: log2(e) / sqrt(head_dim).
template <int kHeadDim>
__device__ __forceinline__ constexpr float log2_scale() {
    return kHeadDim == 64 ? kLog2E / 8 : kHeadDim == 96 ? kLog2E / 9.797958971132712f : kLog2E / 11.313708498984761f;
}

// Scales a product of query and key to a logit in log2.
template <typename Kind>
__device__ __forceinline__ float logit_scale(const Worker<Kind>& worker) {
    if constexpr (Kind::kFp8) {
        return log2_scale<Kind::kHeadDim>() * worker.params.kv_scale[worker.tile().kv_head];
    } else {
        return log2_scale<Kind::kHeadDim>();
    }
}

// The base that weights can be taken from: also where a row has read no key yet.
__device__ __forceinline__ float finite_base(float base) {
    return base == -INFINITY ? 0 : base;
}

}  // namespace sparsespec
