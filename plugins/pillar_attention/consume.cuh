// The consumers: four warps that attend to tile after tile, and finish what the tiles add up to.
#pragma once

#include "pillar_attention/append.cuh"
#include "pillar_attention/attend.cuh"
#include "pillar_attention/merge.cuh"

namespace sparsespec {

// The job, for a row tile with kRowWarps * 16 packed rows at most.
template <int kRowWarps, typename T, int kHeadDim>
__device__ __forceinline__ void consume_tiles(const Worker<T, kHeadDim>& worker, StageCursor& cursor) {
    Pipeline& pipeline = worker.shared.pipeline;
    const TileRange range = worker.job().range;
    const Pass pass = worker.job().pass;
    WarpRows<kHeadDim> mine;
    load_rows<kRowWarps>(worker, mine);
    if (pass.scores) {
        open_scores<kRowWarps>(worker, mine);
    }
    for (int kv_tile = range.begin; kv_tile < range.end; ++kv_tile) {
        barrier_wait(&pipeline.full[cursor.stage], cursor.parity);
        __syncwarp();  // lanes leave the wait on their own, and matrix loads want them together
        attend_tile<kRowWarps>(worker, mine, kv_tile, cursor.stage);
        __syncwarp();
        if (worker.lane == 0) {
            barrier_arrive(&pipeline.empty[cursor.stage]);
        }
        if (pass.scores) {
            score_tile(worker, kv_tile);
        }
        cursor.advance(worker.num_stages);
    }
    if (pass.scores) {
        consumer_sync();
        put_carry(worker);
    }
    if (pass.attends) {
        finish_rows<kRowWarps>(worker, mine);
    }
}

// The consumers' side of the whole launch.
template <typename T, int kHeadDim>
struct Consumer {
    const Worker<T, kHeadDim>& worker;
    StageCursor cursor;

    __device__ __forceinline__ void sync() const { consumer_sync(); }
    __device__ __forceinline__ bool leads() const { return worker.thread == 0; }

    __device__ __forceinline__ void run_job() {
        append_tokens(worker);
        const int packed_rows = worker.tile().packed_rows();
        if (packed_rows <= 16) {
            consume_tiles<1>(worker, cursor);
        } else if (packed_rows <= 32) {
            consume_tiles<2>(worker, cursor);
        } else {
            consume_tiles<4>(worker, cursor);
        }
    }

    // Puts the unit together if this completes it. Whether to pass over it once more: the producers are told too.
    __device__ __forceinline__ bool finish_piece(const Piece& piece, bool at_once, bool may_repeat) {
        WorkerStart* starts = worker_starts(worker.params.plan);
        const bool complete = !piece.shares || arrive(worker, starts, piece.unit);
        if (piece.shares && complete) {
            merge_parts(worker, piece.rows, starts, piece.unit);
            if (at_once && worker.params.score_planes == ScorePlanes::kDiagonal) {
                merge_halos(worker, score_target(worker.params, piece.rows), starts, piece.unit);
            }
        }
        if (!may_repeat) {
            return false;
        }
        consumer_sync();  // the log-sum-exps are in shared memory
        if (worker.thread == 0) {
            worker.shared.pipeline.once_more = complete;
            barrier_arrive(&worker.shared.pipeline.decided);
        }
        return complete;
    }
};

}  // namespace sparsespec
