// The scorer: a warp that makes scores of the consumers' sums, tile after tile, beside them.
#pragma once

#include "pillar_attention/score.cuh"

namespace sparsespec {

// A tile's columns go over the lanes: its tokens, and before them those that its diagonals reach.
constexpr int kMeanColumns = kTileTokens / 32;
constexpr int kDiagonalColumns = (kScoreColumns + 31) / 32;

// Finds which scored row each row of `sums` belongs to, in the order in which the consumers' warps have them.
template <typename Kind>
__device__ __forceinline__ void find_scored_rows(const Worker<Kind>& worker) {
    WorkerShared<Kind::kWay>& shared = worker.shared;
    const RowTile& tile = worker.tile();
    const int lane = worker.lane;
    int first = 0;
    for (int packed = 0; packed < Kind::kTileRows; packed += 16) {
        const RowRange rows = scored_rows(tile, packed);
        const int count = min(rows.end - rows.first, max_score_sums(Kind::kWay) - first);
        if (lane < count) {
            shared.scored_row[first + lane] = tile.scored_row(rows.first + lane);
        }
        first += count;
    }
    shared.num_score_sums = first;
    __syncwarp();
}

// A plane for each scored row. Two warps may have parts of a row: their rows of `sums` follow each other.
template <typename Kind>
__device__ __forceinline__ void put_rows(const Worker<Kind>& worker, int buffer, int kv_tile, int column) {
    const WorkerShared<Kind::kWay>& shared = worker.shared;
    float sum = 0;
    for (int row = 0; row < shared.num_score_sums; ++row) {
        const int plane = shared.scored_row[row];
        sum += shared.sums[buffer][row][column];
        const bool ends = row + 1 == shared.num_score_sums || shared.scored_row[row + 1] != plane;
        // the device's score_rows may promise more planes than there are
        if (ends && plane < worker.params.num_planes) {
            put_score(worker.params, worker.job().target, plane, kv_tile * kTileTokens + column, sum, false);
        }
        sum = ends ? 0 : sum;
    }
}

// Sums of the lane's columns over all rows of `sums`.
struct ColumnSums {
    float mean[kMeanColumns]{};
    float diagonal[kDiagonalColumns]{};
};

template <typename Shared>
__device__ __forceinline__ ColumnSums sum_columns(const Shared& shared, int buffer, int num_rows, int lane) {
    ColumnSums columns;
    const float* sums = shared.sums[buffer][0] + lane;
#pragma unroll 5
    for (int row = 0; row < num_rows; ++row, sums += kScoreStride) {
        const int shift = shared.scored_row[row] - kReach;
#pragma unroll
        for (int index = 0; index < kMeanColumns; ++index) {
            columns.mean[index] += sums[index * 32];
        }
#pragma unroll
        for (int index = 0; index < kDiagonalColumns; ++index) {
            const int source = lane + index * 32 + shift;
            columns.diagonal[index] += source >= 0 && source < kTileTokens ? sums[index * 32 + shift] : 0;
        }
    }
    return columns;
}

// Where the lane's scores of a job go: what of ScoreTarget is the same for every tile.
template <typename Score>
struct ScoreWriter {
    Score* mean;      // of the lane's first token of a tile 0
    Score* diagonal;  // kReach before it
    int lane;
    int last;  // position that there is a score for
    float scale;
    bool adds;

    // `position`: of the first lane's token; `ahead`: how far it is from that of `scores`.
    __device__ __forceinline__ void put(Score* scores, int position, int ahead, float sum) const {
        if (position + lane < 0 || position + lane > last) {
            return;
        }
        const float value = sum * scale;
        scores[ahead] = static_cast<Score>(adds ? value + static_cast<float>(scores[ahead]) : value);
    }
};

template <typename Score, typename Kind>
__device__ __forceinline__ ScoreWriter<Score> score_writer(const Worker<Kind>& worker) {
    const ScoreTarget& target = worker.job().target;
    Score* scores = static_cast<Score*>(worker.params.scores) + target.offset + worker.lane;
    return {scores,     scores + target.plane_stride - kReach, worker.lane, target.last_position, target.scale,
            target.adds};
}

// Writes the diagonals that no later tile adds to, and keeps the others.
template <typename Score, typename Kind>
__device__ __forceinline__ void put_diagonals(const Worker<Kind>& worker, const ScoreWriter<Score>& writer, int kv_tile,
                                              bool starts, const ColumnSums& columns) {
    WorkerShared<Kind::kWay>& shared = worker.shared;
    const int lane = worker.lane;
    float first = columns.diagonal[0];
    if (lane < kReach && starts && kv_tile > 0) {
        const Job& job = worker.job();
        job.part.halo[lane] = first + (job.target.adds ? job.part.halo[lane] : 0);
    } else {
        first += lane < kReach && !starts ? shared.carry[kv_tile % 2][lane] : 0;
        writer.put(writer.diagonal, kv_tile * kTileTokens - kReach, kv_tile * kTileTokens, first);
    }
#pragma unroll
    for (int index = 1; index < kMeanColumns; ++index) {
        const int ahead = kv_tile * kTileTokens + index * 32;
        writer.put(writer.diagonal, ahead - kReach, ahead, columns.diagonal[index]);
    }
    if (lane < kReach) {
        shared.carry[(kv_tile + 1) % 2][lane] = columns.diagonal[kDiagonalColumns - 1];
    }
    __syncwarp();
}

// The scores of a tile from its columns.
template <typename Score, typename Kind>
__device__ __forceinline__ void put_columns(const Worker<Kind>& worker, const ScoreWriter<Score>& writer, int kv_tile,
                                            bool starts, const ColumnSums& columns) {
#pragma unroll
    for (int index = 0; index < kMeanColumns; ++index) {
        const int ahead = kv_tile * kTileTokens + index * 32;
        writer.put(writer.mean, ahead, ahead, columns.mean[index]);
    }
    if (worker.params.score_planes == ScorePlanes::kDiagonal) {
        put_diagonals(worker, writer, kv_tile, starts, columns);
    }
}

template <typename Score, typename Kind>
__device__ __forceinline__ void score_tiles(const Worker<Kind>& worker, RingCursor& buffers) {
    WorkerShared<Kind::kWay>& shared = worker.shared;
    const TileRange range = worker.job().range;
    const ScorePlanes planes = worker.params.score_planes;
    const ScoreWriter<Score> writer = score_writer<Score>(worker);
    const int num_rows = shared.num_score_sums;
    for (int kv_tile = range.begin; kv_tile < range.end; ++kv_tile) {
        barrier_wait(&shared.pipeline.sums_full[buffers.place], buffers.parity);
        if (planes == ScorePlanes::kRows) {
            for (int column = worker.lane; column < kTileTokens; column += 32) {
                put_rows(worker, buffers.place, kv_tile, column);
            }
            barrier_arrive(&shared.pipeline.sums_empty[buffers.place]);
        } else {
            const ColumnSums columns = sum_columns(shared, buffers.place, num_rows, worker.lane);
            barrier_arrive(&shared.pipeline.sums_empty[buffers.place]);
            put_columns(worker, writer, kv_tile, kv_tile == range.begin, columns);
        }
        buffers.advance(2);
    }
    if (planes == ScorePlanes::kDiagonal && worker.lane < kReach) {  // those that are still open after the last tile
        const int ahead = range.end * kTileTokens;
        writer.put(writer.diagonal, ahead - kReach, ahead, shared.carry[range.end % 2][worker.lane]);
    }
}

template <typename Kind>
__device__ __forceinline__ void score_job(const Worker<Kind>& worker, RingCursor& buffers) {
    find_scored_rows(worker);
    if (worker.params.score_dtype == Dtype::kFloat16) {
        score_tiles<__half>(worker, buffers);
    } else {
        score_tiles<float>(worker, buffers);
    }
    __threadfence();  // whoever puts a shared unit together adds halos to what is written
    barrier_arrive(&worker.shared.pipeline.scored);
}

// The scorer's side of the whole launch.
template <typename Kind>
__device__ __forceinline__ void run_scorer(Worker<Kind> worker) {
    auto& pipeline = worker.shared.pipeline;
    RingCursor jobs, buffers;
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
