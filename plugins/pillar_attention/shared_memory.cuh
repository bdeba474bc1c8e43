// The shared memory of one worker (a thread block), and where in it things lie.
#pragma once

#include <cstdint>

#include "pillar_attention/job.cuh"
#include "pillar_attention/params.h"

namespace sparsespec {

// A worker's warps: four consume tiles, two produce them, half of the keys each. Six is also as many as leave each
// thread 168 registers with two workers on a multiprocessor.
constexpr int kWarps = 4;
constexpr int kProducerWarps = 2;
constexpr int kConsumers = kWarps * 32;
constexpr int kThreads = kConsumers + kProducerWarps * 32;
constexpr int kMaxStages = 5;
// Numbers of the output that the warps exchange at a time, and how far apart their rows are, so that a warp's accesses
// fall into different banks.
constexpr int kExchange = 32;
constexpr int kExchangeStride = kExchange + 4;
// A diagonal reaches back so many tokens at most; a multiple of 16 that kMaxBlockRows - 1 fits.
constexpr int kReach = 16;
// Columns of `weights`, and how far apart its rows are, for the same reason.
constexpr int kWeightColumns = kReach + kTileTokens;
constexpr int kWeightStride = kWeightColumns + 8;

// What the producers put into the stages, and the consumers take out.
struct Pipeline {
    uint64_t full[kMaxStages];                      // barriers: the tile has landed
    uint64_t empty[kMaxStages];                     // barriers: no consumer reads it any more
    uint32_t unmasked[kMaxStages][kProducerWarps];  // a bit for each key of the tile that any row may read
    uint64_t appended;                              // barrier: a job's new tokens are in the pool
    uint64_t decided;                               // barrier: it is known whether a piece is passed over once more
    bool once_more;                                 // of the last piece decided
};

// Besides the stages; the dynamic part of a worker's shared memory starts with it.
struct alignas(256) WorkerShared {
    union {
        uint16_t weights[kTileRows][kWeightStride];   // see score.cuh
        float exchange[kWarps][16][kExchangeStride];  // of the output, when a job ends
    };
    uint16_t selector[2][kTileRows];   // fp16 ones: packed rows whose place among the scored rows is even, is odd
    float columns[2][kWeightColumns];  // sums over these rows of each column of `weights`
    float means[kWarps][kTileTokens];  // of 16 packed rows each, for each token of the tile
    float carry[2][kReach];            // what the tile before left to the last tokens of its diagonal
    float row_max[kWarps][16];         // of a warp's rows over its keys, in log2
    float row_sum[kWarps][16];
    float lse[kMaxBlockRows * kMaxGroup];  // of the block's packed rows, in log2
    Pipeline pipeline;
    Job jobs[1 + kProducerWarps];  // the consumers', and one for each producer
    int last_to_arrive;
};

// In place of the position of a key that nobody reads, and of where it lies.
constexpr int kMasked = -1;

// One stage holds the keys and then the values of a tile.
__host__ __device__ constexpr int stage_bytes(int head_dim) {
    return 2 * kTileTokens * head_dim * 2;
}

__host__ __device__ constexpr int shared_bytes(int head_dim, int num_stages) {
    return static_cast<int>(sizeof(WorkerShared)) + num_stages * stage_bytes(head_dim);
}

// Byte offset of 16-byte chunk `chunk` of row `row` in a tile: XOR keeps the eight rows that one matrix load touches in
// different banks. A row of 96 numbers is one and a half times 128 bytes, so there two rows share a pattern.
template <int kHeadDim>
__device__ __forceinline__ int tile_offset(int row, int chunk) {
    const int twist = kHeadDim == 96 ? (row / 2) % 4 : row % 8;
    return row * (kHeadDim * 2) + (chunk ^ twist) * 16;
}

// Where a lane finds 16-byte chunk 2 * step + odd of a row, for all steps: the twist repeats, so few addresses do, and
// what is left is constant.
template <int kHeadDim>
struct LaneChunks {
    static constexpr int kPeriod = kHeadDim == 96 ? 2 : 4;
    uint32_t first[kPeriod];

    __device__ __forceinline__ LaneChunks(uint32_t tile, int row, int odd) {
#pragma unroll
        for (int step = 0; step < kPeriod; ++step) {
            first[step] = tile + tile_offset<kHeadDim>(row, 2 * step + odd);
        }
    }

    // Of the row that is `rows` further down, a multiple of 16.
    __device__ __forceinline__ uint32_t at(int step, int rows) const {
        return first[step % kPeriod] + step / kPeriod * kPeriod * 32 + rows * kHeadDim * 2;
    }
};

}  // namespace sparsespec
