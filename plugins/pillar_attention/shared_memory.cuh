// The shared memory of one worker (a thread block), and where in it things lie.
#pragma once

#include <cstdint>

#include "pillar_attention/job.cuh"
#include "pillar_attention/params.h"

namespace sparsespec {

// Whether the matrix units take a whole warpgroup's products (wgmma) rather than a warp's (mma.sync).
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

// A worker's warps: four of them consume tiles, or eight; of four others the guide says what there is to do, the scout
// finds out where keys lie, the copier copies them, and the scorer puts scores together. Sixteen packed rows a warp.
constexpr int kProducers = 4 * 32;
__host__ __device__ constexpr int consumer_warps(Way way) {
    return way == Way::kNarrow ? 4 : 8;
}
__host__ __device__ constexpr int tile_rows(Way way) {
    return 16 * consumer_warps(way);
}
__host__ __device__ constexpr int worker_threads(Way way) {
    return consumer_warps(way) * 32 + kProducers;
}
// Workers per multiprocessor, at most: more would leave a worker too few registers.
__host__ __device__ constexpr int workers_per_processor(Way way) {
    return way == Way::kNarrow ? 2 : 1;
}
// With wgmma consumers and producers are warpgroups, and the ones hand registers to the others.
__host__ __device__ constexpr int producer_registers(Way way, int head_dim) {
    return way == Way::kWide ? 72 : head_dim == 128 ? 56 : head_dim == 96 ? 72 : 96;
}
__host__ __device__ constexpr int consumer_registers(Way way, int head_dim) {
    return way == Way::kWide ? 216 : 256 - producer_registers(way, head_dim);
}
constexpr int kMaxStages = 12;  // each for the keys of a tile or for its values
// How far ahead of the copier the scout is at most, in tiles; and jobs that are told and not done.
constexpr int kMaxTilesAhead = 10;
constexpr int kMaxJobs = 5;
// Numbers of the output that the warps exchange at a time, and how far apart their rows are, so that a warp's accesses
// fall into different banks.
constexpr int kExchange = 32;
constexpr int kExchangeStride = kExchange + 4;
// A diagonal reaches back so many tokens at most; kMaxBlockRows - 1 fits.
constexpr int kReach = 16;
// Columns of the sums of a tile's scores: its tokens, and those before it that its diagonals reach.
constexpr int kScoreColumns = kReach + kTileTokens;
// Rows of `sums`: a row tile's scored rows, those that two warps share twice. Of four warps most are 17 rows of 3
// heads.
__host__ __device__ constexpr int max_score_sums(Way way) {
    return kMaxBlockRows + (way == Way::kNarrow ? 2 : consumer_warps(way) - 1);
}
// How far apart they are: as above.
constexpr int kScoreStride = kTileTokens + 8;

// Parts that one worker puts together at most; twice as many steps, and they are as many workers as there can be.
constexpr int kMaxUniteParts = 23;
constexpr int kUniteRows = 32;  // at a time

// Barriers, and what goes with them.
struct Pipeline {
    uint64_t full[kMaxStages];            // the tile's keys have landed, or its values
    uint64_t empty[kMaxStages];           // no consumer reads them any more
    uint64_t unmasked[kMaxStages];        // of the TileKeys
    uint64_t keys_full[kMaxTilesAhead];   // the scout has found the tile's keys
    uint64_t keys_empty[kMaxTilesAhead];  // the copier has started all copies
    uint64_t job_full[kMaxJobs];          // the job is told
    uint64_t job_empty[kMaxJobs];         // nobody reads it any more
    uint64_t sums_full[2];                // a tile's sums are there
    uint64_t sums_empty[2];               // the scorer has read them
    uint64_t scored;                      // a job's scores are written
    uint64_t decided;                     // it is known whether a piece is passed over once more
    bool once_more;                       // of the last piece decided
};

// Besides the stages; the end of a worker's dynamic shared memory.
template <Way kWay>
struct alignas(256) WorkerShared {
    static constexpr int kWarps = consumer_warps(kWay), kMaxScoreSums = max_score_sums(kWay);

    union {
        float sums[2][kMaxScoreSums][kScoreStride];       // of two tiles, see score.cuh
        struct {                                          // when a job ends
            float exchange[kWarps][16][kExchangeStride];  // of the output
            float row_base[kWarps][16];                   // of a warp's rows over its keys, in log2
            float row_sum[kWarps][16];
        };
        struct {  // when parts of a unit are put together, see unite.cuh
            float part_factor[kUniteRows][kMaxUniteParts];
            float part_sum[kUniteRows][kMaxUniteParts];
            float united_base[kUniteRows];
            float united_sum[kUniteRows];
        };
    };
    int scored_row[kMaxScoreSums];  // of each row of `sums`
    int num_score_sums;
    float carry[2][kReach];                // what the tile before left to the last tokens of its diagonal
    float lse[kMaxBlockRows * kMaxGroup];  // of the block's packed rows, in log2
    Pipeline pipeline;
    Job jobs[kMaxJobs];
    TileKeys keys[kMaxTilesAhead];
    GuideState guide;
    int last_to_arrive;
};

// A tile takes two stages, one after the other: for its keys, and, unless nobody reads them, for its values. With an
// FP8 pool half of the room is for stages, which hold fp16; the rest is for keys and values on their way, half as long.
__host__ __device__ constexpr int stage_bytes(int head_dim) {
    return kTileTokens * head_dim * 2;
}

// Of FP8 keys or values, in the room of `num_stages` stages.
constexpr int kMaxRaw = kMaxStages;
__host__ __device__ constexpr int fp8_stages(int num_stages) {
    return num_stages / 2;
}
__host__ __device__ constexpr int fp8_raw(int num_stages) {
    return 2 * (num_stages - fp8_stages(num_stages));
}

__host__ __device__ constexpr int shared_bytes(Way way, int head_dim, int num_stages) {
    return static_cast<int>(way == Way::kNarrow ? sizeof(WorkerShared<Way::kNarrow>)
                                                : sizeof(WorkerShared<Way::kWide>)) +
           num_stages * stage_bytes(head_dim);
}

static_assert(2 * (shared_bytes(Way::kNarrow, 128, 6) + 1024) <= 228 * 1024,
              "two workers fit on a multiprocessor of sm_90");

// A tile is cut into blocks of columns, 128 bytes wide (64 where head_dim is 96), one after another. Within a block the
// 16-byte chunks of a row are permuted by XOR, as wgmma wants its operands, and as keeps the eight rows that one
// matrix load touches in different banks.
template <int kHeadDim>
struct TileLayout {
    static constexpr int kRowBytes = kHeadDim == 96 ? 64 : 128;
    static constexpr int kBlockBytes = kTileTokens * kRowBytes;
    static constexpr int kChunks = kRowBytes / 16;  // of a row of a block
    static constexpr int kSteps = kChunks / 2;      // of 16 numbers

    // Byte offset of 16-byte chunk `chunk` of row `row`.
    __device__ __forceinline__ static int offset(int row, int chunk) {
        const int twist = row * kRowBytes / 128 % kChunks;
        return chunk / kChunks * kBlockBytes + row * kRowBytes + (chunk % kChunks ^ twist) * 16;
    }
};

// Where a lane finds 16-byte chunk 2 * step + odd of a row, for all steps: a block's addresses do, what is left is
// constant.
template <int kHeadDim>
struct LaneChunks {
    using Layout = TileLayout<kHeadDim>;
    uint32_t first[Layout::kSteps];

    __device__ __forceinline__ LaneChunks(uint32_t tile, int row, int odd) {
#pragma unroll
        for (int step = 0; step < Layout::kSteps; ++step) {
            first[step] = tile + Layout::offset(row, 2 * step + odd);
        }
    }

    // Of the row that is `rows` further down, a multiple of 16.
    __device__ __forceinline__ uint32_t at(int step, int rows) const {
        return first[step % Layout::kSteps] + step / Layout::kSteps * Layout::kBlockBytes + rows * Layout::kRowBytes;
    }
};

}  // namespace sparsespec
