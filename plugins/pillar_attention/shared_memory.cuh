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
// finds out where keys lie, the copier copies them, and the scorer puts scores together. Sixteen packed rows of a row
// tile for each that consumes.
constexpr int kProducers = 4 * 32;
__host__ __device__ constexpr int consumer_warps(Way way) {
    return way == Way::kNarrow ? 4 : 8;
}
__host__ __device__ constexpr int tile_rows(Way way) {
    return 16 * consumer_warps(way);
}
// With wgmma four consumer warps are a team, which shares matrix products.
constexpr int kTeamThreads = 4 * 32;
__host__ __device__ constexpr int num_teams(Way way) {
    return consumer_warps(way) / 4;
}
static_assert(tile_rows(Way::kWide) == num_teams(Way::kWide) * kTeamRows && tile_rows(Way::kNarrow) == kTeamRows,
              "row tiles are of whole teams");
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
// A worker's room, at most, in stages of 16-bit numbers, each for the keys of a tile or for its values. What lies
// before the stages takes its part, see stages_offset; stages of an FP8 pool are half as long.
constexpr int kMaxRoom = 12;
constexpr int kBuffers = 2;  // of fp16, for an FP8 pool without wgmma
constexpr int kMaxStages = 2 * (kMaxRoom - kBuffers);
constexpr int kMaxJobs = 5;  // that are told and not done
// Tiles that the scout takes up at a time, and how many it is ahead of the copier at most. A wide worker's one scout
// has a whole multiprocessor to feed.
__host__ __device__ constexpr int batch_tiles(Way way) {
    return way == Way::kNarrow ? 4 : 6;
}
__host__ __device__ constexpr int tiles_ahead(Way way) {
    return way == Way::kNarrow ? 7 : 16;
}
// Numbers of the output that the warps exchange at a time, and how far apart their rows are, so that a warp's accesses
// fall into different banks.
constexpr int kExchange = 32;
constexpr int kExchangeStride = kExchange + 4;
// A diagonal reaches back so many tokens at most; kMaxBlockRows - 1 fits.
constexpr int kReach = 16;
// Columns of the sums of a tile's scores: its tokens, and those before it that its diagonals reach.
constexpr int kScoreColumns = kReach + kTileTokens;
// Rows of `sums`: a row tile's scored rows and, with wgmma, each team's sum of all of its own; without, those that two
// warps share twice, most where 17 rows are of 3 heads.
constexpr int kMaxScoreSums = kMaxBlockRows + 2;
static_assert(num_teams(Way::kWide) <= 2, "a sum of each team");
// How far apart they are: as above.
constexpr int kScoreStride = kTileTokens + 4;

// Barriers, and what goes with them.
template <int kTilesAhead>
struct Pipeline {
    uint64_t full[kMaxStages];         // the tile's keys have landed, or its values
    uint64_t empty[kMaxStages];        // no consumer reads them any more
    uint64_t unmasked[kMaxStages];     // of the TileKeys
    uint64_t keys_full[kTilesAhead];   // the scout has found the tile's keys
    uint64_t keys_empty[kTilesAhead];  // the copier has started all copies
    uint64_t job_full[kMaxJobs];       // the job is told
    uint64_t job_empty[kMaxJobs];      // nobody reads it any more
    uint64_t sums_full[2];             // a tile's sums are there
    uint64_t sums_empty[2];            // the scorer has read them
    uint64_t scored;                   // a job's scores are written
    uint64_t decided;                  // it is known whether a piece is passed over once more
    bool once_more;                    // of the last piece decided
};

// What warps without wgmma exchange when a job ends; wide workers have wgmma.
template <Way kWay>
struct Exchange {};
template <>
struct Exchange<Way::kNarrow> {
    static constexpr int kWarps = consumer_warps(Way::kNarrow);

    float output[kWarps][16][kExchangeStride];
    float row_base[kWarps][16];  // of a warp's rows over its keys, in log2
    float row_sum[kWarps][16];
};

// Besides the stages; the end of a worker's dynamic shared memory.
template <Way kWay>
struct alignas(256) WorkerShared {
    union {
        float sums[2][kMaxScoreSums][kScoreStride];  // of two tiles, see score.cuh
        Exchange<kWay> exchange;
    };
    float lse[kMaxBlockRows * kMaxGroup];        // of the block's packed rows, in log2
    float team_lse[num_teams(kWay)][kTeamRows];  // of a team's, to be scored by
    Pipeline<tiles_ahead(kWay)> pipeline;
    Job jobs[kMaxJobs];
    RowTile teams[kMaxJobs][num_teams(kWay)];  // of wide workers, each team's part of a job's row tile
    TileKeys keys[tiles_ahead(kWay)];
    int32_t listed[batch_tiles(kWay)][kTileTokens];  // entries of a draft's list, the scout's own
    GuideState guide;
    int last_to_arrive;
};

// The keys of a tile, or its values. A tile takes two stages, one after the other: for its keys, and for its values.
__host__ __device__ constexpr int tile_bytes(int head_dim, int number_bytes) {
    return kTileTokens * head_dim * number_bytes;
}

// The same whatever numbers the pool has: PillarPlan, which does not know, counts on as many workers.
__host__ __device__ constexpr int room_bytes(int head_dim, int room) {
    return room * tile_bytes(head_dim, 2);
}

// A buffer of a team's weights, in 16 bits: of a tile, or of two where few rows leave room.
constexpr int kWeightBytes = kTeamRows * kTileTokens * 2;
// A team's queries, in as many bytes as 16-bit numbers take, and two buffers of weights.
__host__ __device__ constexpr int team_bytes(int head_dim) {
    return kTeamRows * head_dim * 2 + 2 * kWeightBytes;
}

// Where in the room what teams have begins, and where the stages do. Without wgmma there are no teams, but buffers of
// fp16 for an FP8 pool.
__device__ constexpr int teams_offset(int head_dim, bool fp8) {
    return fp8 && !kHasWgmma ? kBuffers * tile_bytes(head_dim, 2) : 0;
}
__device__ constexpr int stages_offset(Way way, int head_dim, bool fp8) {
    return teams_offset(head_dim, fp8) + (kHasWgmma ? num_teams(way) * team_bytes(head_dim) : 0);
}

// Wide workers: of a tile's keys and its values, which lie together.
__host__ __device__ constexpr int stages_together(Way way) {
    return way == Way::kNarrow ? 1 : 2;
}

__device__ constexpr int num_stages(Way way, int head_dim, bool fp8, int room) {
    const int stages =
        (room_bytes(head_dim, room) - stages_offset(way, head_dim, fp8)) / tile_bytes(head_dim, fp8 ? 1 : 2);
    return stages / stages_together(way) * stages_together(way);
}

__host__ __device__ constexpr int shared_bytes(Way way, int head_dim, int room) {
    return static_cast<int>(way == Way::kNarrow ? sizeof(WorkerShared<Way::kNarrow>)
                                                : sizeof(WorkerShared<Way::kWide>)) +
           room_bytes(head_dim, room);
}

static_assert(2 * (shared_bytes(Way::kNarrow, 128, 6) + 1024) <= 228 * 1024,
              "two workers fit on a multiprocessor of sm_90");

// A tile's rows are cut into blocks of columns, as wide as fits a key or value of kBytes: 128, 64 or 32 bytes. A narrow
// worker's tile is one block after another. A wide one's is eight rows of one block, the same rows of the next block,
// then the next eight rows: so a page is in one piece, and the copy engine brings it at once, its keys and its values:
// kTogether such tiles lie in each other, eight rows of one, then eight of the other. The 16-byte chunks of a row of a
// block are permuted by XOR, as wgmma wants its operands, and as keeps the eight rows that one matrix load touches in
// different banks.
template <int kBytes, Way kWay, int kTogether = 1>
struct TileLayout {
    static constexpr int kRowBytes = kBytes % 128 == 0 ? 128 : kBytes % 64 == 0 ? 64 : 32;
    static constexpr int kBlocks = kBytes / kRowBytes;
    static constexpr bool kWholePages = kWay == Way::kWide;
    static constexpr int kBlockBytes = (kWholePages ? 8 : kTileTokens) * kRowBytes;  // from a block to the next one
    static constexpr int kChunks = kRowBytes / 16;                                   // of a row of a block
    static constexpr int kSteps = kChunks / 2;  // of 32 bytes, the depth of a matrix product
    // From eight rows to the next eight.
    static constexpr int kEightRows = (kWholePages ? kTogether * kBlocks : 1) * 8 * kRowBytes;
    static_assert(kTogether == 1 || kWholePages, "rows of blocks do not lie in each other");

    // Byte offset of 16-byte chunk `chunk` of row `row`, one of the first eight.
    __host__ __device__ __forceinline__ static int offset_in_eight(int row, int chunk) {
        const int twist = row * kRowBytes / 128 % kChunks;
        return chunk / kChunks * kBlockBytes + row * kRowBytes + (chunk % kChunks ^ twist) * 16;
    }
    // The same for any row.
    __host__ __device__ __forceinline__ static int offset(int row, int chunk) {
        return row / 8 * kEightRows + offset_in_eight(row % 8, chunk);
    }
};

// A tile's keys in a stage, or its values, of kBytes each.
template <int kBytes, Way kWay>
struct StageTile : TileLayout<kBytes, kWay, stages_together(kWay)> {
    static constexpr int kTogether = stages_together(kWay);
    static constexpr int kTogetherBytes = kTogether * kTileTokens * kBytes;
    static constexpr int kNextBytes = 8 * kBytes;  // from one of those to the next

    // From the first stage to another.
    __host__ __device__ __forceinline__ static int stage_offset(int place) {
        return place / kTogether * kTogetherBytes + place % kTogether * kNextBytes;
    }
};

// Where a lane finds 16-byte chunk 2 * step + odd of a row of 16-bit numbers, for all steps: a block's addresses do,
// what is left is constant.
template <typename Layout>
struct LaneChunks {
    uint32_t first[Layout::kSteps];

    __device__ __forceinline__ LaneChunks(uint32_t tile, int row, int odd) {
#pragma unroll
        for (int step = 0; step < Layout::kSteps; ++step) {
            first[step] = tile + Layout::offset(row, 2 * step + odd);
        }
    }

    // Of the row that is `rows` further down, a multiple of 16.
    __device__ __forceinline__ uint32_t at(int step, int rows) const {
        return first[step % Layout::kSteps] + step / Layout::kSteps * Layout::kBlockBytes +
               rows / 8 * Layout::kEightRows;
    }
};

}  // namespace sparsespec
