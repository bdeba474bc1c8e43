// How a row tile is divided over the warps of a worker, and what each keeps in registers.
#pragma once

#include "pillar_attention/worker.cuh"

namespace sparsespec {

// A warp's 16 packed rows: queries, and what their softmax has come to over the warp's keys. In log2; lane l holds
// parts of rows l / 4 and l / 4 + 8.
template <int kHeadDim>
struct WarpRows {
    uint32_t q[kHeadDim / 16][4];
    float output[kHeadDim / 8][4];
    float max[2];
    float sum[2];  // of this lane's keys only, until the end
    float lse[2];  // that scores are normalised by; infinite for rows that are not scored
    int shift[2];  // of the rows in `weights`
    int last_key[2];
};

// Rows of the tile go over kRowWarps warps, keys over the others: few rows leave warps free to split the keys.
template <int kRowWarps>
struct WarpShare {
    static constexpr int kKeyWarps = kWarps / kRowWarps;
    static constexpr int kKeys = kTileTokens / kKeyWarps;

    __device__ static int first_row(int warp) { return warp / kKeyWarps * 16; }
    __device__ static int first_key(int warp) { return warp % kKeyWarps * kKeys; }
};

constexpr float kLog2E = 1.4426950408889634f;

// Scales a product of query and key to a logit in log2: log2(e) / sqrt(head_dim).
template <int kHeadDim>
__device__ __forceinline__ constexpr float log2_scale() {
    return kHeadDim == 64 ? kLog2E / 8 : kHeadDim == 96 ? kLog2E / 9.797958971132712f : kLog2E / 11.313708498984761f;
}

template <int kHeadDim>
__device__ __forceinline__ float softmax_base(const WarpRows<kHeadDim>& mine, int half) {
    return mine.max[half] == -INFINITY ? 0 : mine.max[half];
}

}  // namespace sparsespec
