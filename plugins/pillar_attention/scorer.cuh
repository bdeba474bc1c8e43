// The scorer: a warp that makes scores of the consumers' sums, tile after tile, beside them.
#pragma once

#include "pillar_attention/columns.cuh"
#include "pillar_attention/score.cuh"

namespace sparsespec {

// A tile's columns go over the lanes: its tokens, and before them those that its diagonals reach.
constexpr int kMeanColumns = kTileTokens / 32;
constexpr int kDiagonalColumns = (kScoreColumns + 31) / 32;

// The rows of `sums`: each belongs to the same scored row as the one before, or to the next.
struct SumRows {
    int count;
    int first_plane;   // of row 0: its scored row
    uint32_t repeats;  // a bit for each row that belongs to the scored row of the one before
};
static_assert(kMaxScoreSums <= 32, "a bit for each row of sums");

// Finds which scored row each row of `sums` belongs to, in the order in which the consumers' warps have them.
template <typename Kind>
__device__ __forceinline__ SumRows find_sum_rows(const Worker<Kind>& worker) {
    const RowTile& tile = worker.tile();
    if constexpr (kHasWgmma) {
        return {scored_row_count(tile), tile.scored_row(scored_rows(tile, 0, tile.packed_rows()).first), 0};
    }
    constexpr int step = 16;
    SumRows found{0, 0, 0};
    int next_plane = -1;
    for (int packed = 0; packed < tile.packed_rows(); packed += step) {
        const RowRange rows = scored_rows(tile, packed, step);
        const int count = min(rows.end - rows.first, kMaxScoreSums - found.count);
        if (count <= 0) {
            continue;
        }
        const int plane = tile.scored_row(rows.first);
        if (found.count == 0) {
            found.first_plane = plane;
        } else if (plane < next_plane) {
            found.repeats |= 1u << found.count;
        }
        found.count += count;
        next_plane = plane + count;
    }
    return found;
}

// A plane for each scored row. Two warps may have parts of a row: their rows of `sums` follow each other.
template <typename Kind>
__device__ __forceinline__ void put_rows(const Worker<Kind>& worker, const SumRows& rows, int buffer, int kv_tile,
                                         int column) {
    const WorkerShared<Kind::kWay>& shared = worker.shared;
    float sum = 0;
    int plane = rows.first_plane;
    for (int row = 0; row < rows.count; ++row) {
        sum += shared.sums[buffer][row][column];
        if (row + 1 < rows.count && (rows.repeats >> (row + 1) & 1) != 0) {
            continue;
        }
        if (plane < worker.params.num_planes) {  // the device's score_rows may promise more planes than there are
            put_score(worker.params, worker.job().target, plane, kv_tile * kTileTokens + column, sum, false);
        }
        ++plane;
        sum = 0;
    }
}

// Sums of the lane's columns over all rows of `sums`.
struct ColumnSums {
    float mean[kMeanColumns]{};
    float diagonal[kDiagonalColumns]{};
};

// Of kAtOnce rows at a time: their loads are on their way together, since each waits for the copies.
template <int kAtOnce, typename Shared>
__device__ __forceinline__ ColumnSums sum_columns(const Shared& shared, int buffer, const SumRows& rows, int lane) {
    ColumnSums columns;
    const float* sums = &shared.sums[buffer][0][lane];
    int shift = rows.first_plane - kReach;
#pragma unroll 1
    for (int first = 0; first < rows.count; first += kAtOnce) {
        float mean[kAtOnce][kMeanColumns], diagonal[kAtOnce][kDiagonalColumns];
#pragma unroll
        for (int row = 0; row < kAtOnce; ++row, sums += kScoreStride) {
            const bool present = first + row < rows.count;
#pragma unroll
            for (int index = 0; index < kMeanColumns; ++index) {
                mean[row][index] = present ? sums[index * 32] : 0;
            }
#pragma unroll
            for (int index = 0; index < kDiagonalColumns; ++index) {
                const int source = lane + index * 32 + shift;
                diagonal[row][index] = present && source >= 0 && source < kTileTokens ? sums[index * 32 + shift] : 0;
            }
            shift += (rows.repeats >> (first + row) & 2) == 0;
        }
#pragma unroll
        for (int row = 0; row < kAtOnce; ++row) {
#pragma unroll
            for (int index = 0; index < kMeanColumns; ++index) {
                columns.mean[index] += mean[row][index];
            }
#pragma unroll
            for (int index = 0; index < kDiagonalColumns; ++index) {
                columns.diagonal[index] += diagonal[row][index];
            }
        }
    }
    return columns;
}

// The same of sums that column_scores.cuh has left, a row for each scored row and behind them each team's sum. Of each
// row the lane takes a token for its column in the middle, where a diagonal always has one, and the token for its first
// column or, where that lies before the tile, for its last one.
template <int kAtOnce, int kTeams, typename Shared>
__device__ __forceinline__ ColumnSums sum_planes(const Shared& shared, int buffer, const SumRows& rows,
                                                 ScorePlanes planes, int lane) {
    static_assert(kDiagonalColumns == 3 && kMeanColumns == 2 && kReach <= 16, "as above");
    ColumnSums columns;
    const float* sums = &shared.sums[buffer][0][0];
#pragma unroll
    for (int index = 0; index < kMeanColumns; ++index) {
#pragma unroll
        for (int team = 0; team < kTeams; ++team) {
            columns.mean[index] += sums[(rows.count + team) * kScoreStride + index * 32 + lane];
        }
    }
    const int end = planes == ScorePlanes::kDiagonal ? rows.count : 0;
#pragma unroll 1
    for (int first = 0; first < end; first += kAtOnce) {
        float middle[kAtOnce], outer[kAtOnce];
        const int place = lane + rows.first_plane + first;
#pragma unroll
        for (int row = 0; row < kAtOnce; ++row) {
            const float* from = sums + (first + row) * kScoreStride;
            const bool present = first + row < end;
            middle[row] = present ? from[place + row + 32 - kReach] : 0;
            outer[row] = present ? from[(place + row - kReach) & (kTileTokens - 1)] : 0;
        }
#pragma unroll
        for (int row = 0; row < kAtOnce; ++row) {
            const bool before = place + row < kReach;
            columns.diagonal[0] += before ? 0 : outer[row];
            columns.diagonal[1] += middle[row];
            columns.diagonal[2] += before ? outer[row] : 0;
        }
    }
    return columns;
}

// Writes the lane's scores of a job. What of ScoreTarget is the same for every tile.
struct ScoreWriter {
    char* scores;       // of the lane's first token of a tile 0, in plane 0
    int64_t to_plane1;  // in bytes
    int lane;
    int last;  // position that there is a score for
    float scale;
    bool adds;
    bool half;  // scores are fp16, not fp32

    template <typename Score>
    __device__ __forceinline__ void put_as(char* plane, int position, float score) const {
        Score& at = reinterpret_cast<Score*>(plane)[position];
        at = static_cast<Score>(adds ? score + static_cast<float>(at) : score);
    }

    // `position`: of the first lane's token.
    __device__ __forceinline__ void put(int plane, int position, float sum) const {
        if (position + lane < 0 || position + lane > last) {
            return;
        }
        char* at = scores + plane * to_plane1;
        if (half) {
            put_as<__half>(at, position, sum * scale);
        } else {
            put_as<float>(at, position, sum * scale);
        }
    }
};

template <typename Kind>
__device__ __forceinline__ ScoreWriter score_writer(const Worker<Kind>& worker) {
    const ScoreTarget& target = worker.job().target;
    const bool half = worker.params.score_dtype == Dtype::kFloat16;
    const int number_bytes = half ? 2 : 4;
    return {static_cast<char*>(worker.params.scores) + (target.offset + worker.lane) * number_bytes,
            target.plane_stride * number_bytes,
            worker.lane,
            target.last_position,
            target.scale,
            target.adds,
            half};
}

// Writes the diagonals that no later tile adds to, and keeps the others: `carry`, what the tile before left to the last
// tokens before this one's, in the first kReach lanes.
template <typename Kind>
__device__ __forceinline__ void put_diagonals(const Worker<Kind>& worker, const ScoreWriter& writer, int kv_tile,
                                              bool starts, const ColumnSums& columns, float& carry) {
    const int lane = worker.lane, first = kv_tile * kTileTokens - kReach;
    if (lane < kReach && starts && kv_tile > 0) {
        const Job& job = worker.job();
        job.part.halo[lane] = columns.diagonal[0] + (job.target.adds ? job.part.halo[lane] : 0);
    } else {
        writer.put(1, first, columns.diagonal[0] + (lane < kReach && !starts ? carry : 0));
    }
#pragma unroll
    for (int index = 1; index < kMeanColumns; ++index) {
        writer.put(1, first + index * 32, columns.diagonal[index]);
    }
    carry = columns.diagonal[kDiagonalColumns - 1];
}

template <typename Kind>
__device__ __forceinline__ ColumnSums column_sums(const Worker<Kind>& worker, const SumRows& rows, int buffer) {
    if constexpr (kHasWgmma) {
        return sum_planes<5, num_teams(Kind::kWay)>(worker.shared, buffer, rows, worker.params.score_planes,
                                                    worker.lane);
    } else {
        constexpr int kAtOnce = producer_registers(Kind::kWay, Kind::kHeadDim) < 64 ? 4 : 6;
        return sum_columns<kAtOnce>(worker.shared, buffer, rows, worker.lane);
    }
}

template <typename Kind>
__device__ __forceinline__ void score_tiles(const Worker<Kind>& worker, const SumRows& rows, PairCursor& buffers) {
    WorkerShared<Kind::kWay>& shared = worker.shared;
    const TileRange range = worker.job().range;
    const ScorePlanes planes = worker.params.score_planes;
    const ScoreWriter writer = score_writer(worker);
    float carry = 0;
    for (int kv_tile = range.begin; kv_tile < range.end; ++kv_tile) {
        barrier_wait(&shared.pipeline.sums_full[buffers.place()], buffers.parity());
        if (planes == ScorePlanes::kRows) {
            for (int column = worker.lane; column < kTileTokens; column += 32) {
                put_rows(worker, rows, buffers.place(), kv_tile, column);
            }
            barrier_arrive(&shared.pipeline.sums_empty[buffers.place()]);
        } else {
            const ColumnSums columns = column_sums(worker, rows, buffers.place());
            barrier_arrive(&shared.pipeline.sums_empty[buffers.place()]);
#pragma unroll
            for (int index = 0; index < kMeanColumns; ++index) {
                writer.put(0, kv_tile * kTileTokens + index * 32, columns.mean[index]);
            }
            if (planes == ScorePlanes::kDiagonal) {
                put_diagonals(worker, writer, kv_tile, kv_tile == range.begin, columns, carry);
            }
        }
        buffers.advance();
    }
    if (planes == ScorePlanes::kDiagonal && worker.lane < kReach) {  // those that are still open after the last tile
        writer.put(1, range.end * kTileTokens - kReach, carry);
    }
}

template <typename Kind>
__device__ __forceinline__ void score_job(const Worker<Kind>& worker, PairCursor& buffers) {
    score_tiles(worker, find_sum_rows(worker), buffers);
    barrier_arrive(&worker.shared.pipeline.scored);
}

// The scorer's side of the whole launch.
template <typename Kind>
__device__ __forceinline__ void run_scorer(Worker<Kind> worker) {
    auto& pipeline = worker.shared.pipeline;
    RingCursor jobs;
    PairCursor buffers;
    while (true) {
        barrier_wait(&pipeline.job_full[jobs.place], jobs.parity);
        worker.job_slot = jobs.place;
        if (worker.job().ends) {
            return;
        }
        if (worker.job().pass.scores) {
            score_job(worker, buffers);
        }
        barrier_arrive(&pipeline.job_empty[jobs.place]);
        jobs.advance(kMaxJobs);
    }
}

}  // namespace sparsespec
