// Tokens by inverse transform: a thread block sums weights in tiles, in an order that depends on nothing but their
// number.
#pragma once

#include <cstdint>

#include "common/logits.cuh"

namespace sparsespec {

// Most tiles of a vocabulary.
constexpr int kMaxTiles = 128;

template <int kThreads>
struct DrawShared {
    double warps[kThreads / 32];
    double tiles[kMaxTiles];
    int32_t found;
    int32_t last;
};

// Inclusive, over the block; `total` is of all threads. The next call needs a barrier before it.
template <int kThreads>
__device__ inline double block_prefix(double value, double (&warps)[kThreads / 32], double& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const double other = __shfl_up_sync(0xffffffffu, value, step);
        value += lane >= step ? other : 0;
    }
    if (lane == 31) {
        warps[warp] = value;
    }
    __syncthreads();
    double before = 0;
    total = 0;
    for (int each = 0; each < kThreads / 32; ++each) {
        before += each < warp ? warps[each] : 0;
        total += warps[each];
    }
    return before + value;
}

__device__ inline float sum_of(const float (&weights)[kLogitsPerThread]) {
    float sum = 0;
#pragma unroll
    for (int index = 0; index < kLogitsPerThread; ++index) {
        sum += weights[index];
    }
    return sum;
}

// Weights: `void operator()(int first, float (&weights)[kLogitsPerThread]) const`, 0 beyond the vocabulary.
// The sum of all weights; fills shared.tiles. Ends with a barrier.
template <int kThreads, typename Weights>
__device__ inline double sum_weights(const Weights& weights_at, int vocab_size, DrawShared<kThreads>& shared) {
    constexpr int kTile = kLogitTile<kThreads>;
    double sum = 0;
    for (int tile = 0; tile * kTile < vocab_size; ++tile) {
        float weights[kLogitsPerThread];
        weights_at(tile * kTile + static_cast<int>(threadIdx.x) * kLogitsPerThread, weights);
        double total;
        block_prefix<kThreads>(sum_of(weights), shared.warps, total);
        if (threadIdx.x == 0) {
            shared.tiles[tile] = total;
        }
        sum += total;
        __syncthreads();
    }
    return sum;
}

// The last tile with any weight at whose start the running sum is at most `target`.
struct TileStart {
    int32_t tile;
    double before;  // sum of the tiles before it
};

template <int kThreads>
__device__ inline TileStart find_tile(int num_tiles, double target, const DrawShared<kThreads>& shared) {
    TileStart start{0, 0};
    double sum = 0;
    for (int tile = 0; tile < num_tiles; ++tile) {
        if (shared.tiles[tile] > 0 && sum <= target) {
            start = {tile, sum};
        }
        sum += shared.tiles[tile];
    }
    return start;
}

// The first token at which the running sum exceeds `target`, for all threads, after sum_weights of the same weights; if
// rounding leaves none, the last with any weight.
template <int kThreads, typename Weights>
__device__ inline int32_t find_token(const Weights& weights_at, int vocab_size, double target,
                                     DrawShared<kThreads>& shared) {
    constexpr int kTile = kLogitTile<kThreads>;
    if (threadIdx.x == 0) {
        shared.found = INT32_MAX;
        shared.last = 0;
    }
    const TileStart start = find_tile<kThreads>((vocab_size + kTile - 1) / kTile, target, shared);
    const int first = start.tile * kTile + static_cast<int>(threadIdx.x) * kLogitsPerThread;
    float weights[kLogitsPerThread];
    weights_at(first, weights);
    const float own = sum_of(weights);
    double total;
    double running = start.before + block_prefix<kThreads>(own, shared.warps, total) - own;
    int32_t found = INT32_MAX, last = 0;
#pragma unroll
    for (int index = kLogitsPerThread - 1; index >= 0; --index) {
        last = weights[index] > 0 && last == 0 ? first + index : last;
    }
#pragma unroll
    for (int index = 0; index < kLogitsPerThread; ++index) {
        running += weights[index];
        found = weights[index] > 0 && running > target && found == INT32_MAX ? first + index : found;
    }
    atomicMin(&shared.found, found);
    atomicMax(&shared.last, last);
    __syncthreads();
    return shared.found == INT32_MAX ? shared.last : shared.found;
}

}  // namespace sparsespec
